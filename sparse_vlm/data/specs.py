"""Data by name: "PREFIX:NAME", as in "hf:NAME[@CONFIG][:SPLIT]" or "wds:SHARDS", or a path without a prefix."""

from collections.abc import Sequence
from pathlib import Path

from sparse_vlm.errors import UserError, unknown_choice


def parse_spec(
    spec: str, prefixes: Sequence[str], base: Path = Path(), option: str = "--data_path"
) -> tuple[str | None, str]:
    """Split a spec into prefix and name. The prefix alone decides, never what the path looks like.

    Args:
        spec: the value of the option.
        prefixes: all valid prefixes.
        base: the folder that paths are relative to.
        option: the option, for errors.

    Returns:
        (prefix, name), or (None, path) without a prefix.
    """
    prefix, colon, name = spec.partition(":")
    has_prefix = bool(colon) and prefix in prefixes
    if not (name if has_prefix else spec).strip():
        raise UserError(f"{option} {spec!r} names no data: give a path, or a name after the prefix.")
    if has_prefix:
        return prefix, name
    if colon and not (base / spec).exists():
        raise UserError(
            f"{unknown_choice(f'prefix of {option}', prefix, prefixes)} Without a prefix it is a path, and {spec} "
            "does not exist."
        )
    return None, spec
