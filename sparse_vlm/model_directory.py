"""Read parts of a model directory (`sparse_vlm.vlm`) without transformers and without its language model."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from sparse_vlm.dtypes import DTYPES
from sparse_vlm.encoder import SparseFormer, SparseFormerConfig
from sparse_vlm.errors import UserError, unknown_choice
from sparse_vlm.files import read_object

MODEL_TYPE = "sparse_vlm"
TOWER = "model.vision_tower."
ENCODER = f"{TOWER}encoder."


def read_config(directory: str | Path) -> dict[str, Any]:
    """Read config.json of a directory; {} without one."""
    file = Path(directory) / "config.json"
    return read_object(file) if file.exists() else {}


def saved_dtype(directory: str | Path) -> str:
    """Return the dtype of a model directory's weights according to its config.json, as a key of DTYPES."""
    dtype = read_config(directory).get("dtype") or "float32"
    if dtype not in DTYPES:
        raise unknown_choice(f"dtype in config.json of {directory}", str(dtype), DTYPES)
    return dtype


def short_name(directory: str | Path) -> str:
    """Return the last two parts of a path, since the last part alone is often just "model"."""
    return "/".join(part for part in Path(directory).resolve().parts[-2:] if part != "/")


@contextmanager
def described_by_config(directory: str | Path) -> Iterator[None]:
    """Turn missing keys and wrong types into UserErrors, for a block that reads a model directory's configuration."""
    try:
        yield
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(f"config.json of {directory} is incomplete or damaged: {error!r}.") from error


def weight_shapes(directory: str | Path) -> dict[str, list[int]]:
    """Return name -> shape of all weights of a directory, in one or several files."""
    shapes: dict[str, list[int]] = {}
    for weights in _open_weights(Path(directory)):
        shapes |= {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118
    return shapes


def open_encoder(directory: str | Path) -> SparseFormer:
    """Open the SparseFormer of an encoder directory or inside a model directory, strictly and in eval mode."""
    config = read_config(directory)
    if config.get("model_type") != MODEL_TYPE:
        return SparseFormer.from_pretrained(directory)
    with described_by_config(directory):
        vision = config["vision_config"]
        if vision["model_type"] != "sparseformer":
            raise UserError(
                f"The vision tower of {directory} is a dense ViT ({vision['model_type']}), which has no RoIs."
            )
        encoder_config = SparseFormerConfig.from_dict(vision["encoder"])
    found: dict[str, Tensor] = {}
    for weights in _open_weights(Path(directory)):
        names = [name for name in weights.keys() if name.startswith(ENCODER)]  # noqa: SIM118
        found |= {name.removeprefix(ENCODER): weights.get_tensor(name) for name in names}
    return SparseFormer.from_weights(encoder_config, found, source=f"the vision tower of {directory}")


def _open_weights(directory: Path) -> Iterator[Any]:
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise UserError(f"{directory} has no weights (*.safetensors).")
    for file in files:
        with _readable(file), safe_open(file, framework="pt") as weights:
            yield weights


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} cannot be read: {error}.") from error
