"""variant.json in a checkpoint: the settings that a run must share with the checkpoint from which it resumes."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparse_vlm.errors import UserError
from sparse_vlm.files import write_json

VARIANT_FILE = "variant.json"


def write_variant(checkpoint: Path, variant: Mapping[str, Any]) -> None:
    """Write a run's variant, JSON values, into its checkpoint."""
    write_json(checkpoint / VARIANT_FILE, variant)


def stored_value(checkpoint: Path, name: str) -> Any:
    """Return a setting of a checkpoint's variant; None if the checkpoint has none that can be read."""
    try:
        return _read(checkpoint).get(name)
    except (OSError, ValueError):
        return None


def require_same_variant(checkpoint: Path, variant: Mapping[str, Any]) -> None:
    """Compare a run's variant with that of the checkpoint it would resume from.

    Raises:
        UserError: they differ (the message names the first difference), or the checkpoint has none.
    """
    try:
        earlier = _read(checkpoint)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{checkpoint} has no readable {VARIANT_FILE}, so this run cannot tell whether it may resume from it "
            "(was it written with --save_only_model True, by another program, or by an older version?). Choose another "
            "--output_dir, or remove the checkpoint."
        ) from error
    present = _flatten(json.loads(json.dumps(variant)))
    for name in present | earlier:
        if earlier.get(name) != present.get(name):
            raise UserError(
                f"{checkpoint} belongs to another variant: its {name} is {earlier.get(name)}, this run's is "
                f"{present.get(name)}. Choose another --output_dir, or start with the arguments of that run."
            )


def _read(checkpoint: Path) -> dict[str, Any]:
    return _flatten(json.loads((checkpoint / VARIANT_FILE).read_text(encoding="utf-8")))


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}"""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
