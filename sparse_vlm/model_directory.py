"""Reading a part of a model directory (`sparse_vlm.vlm`) without transformers and without its language model."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from sparse_vlm.dtypes import DTYPES
from sparse_vlm.encoder import SparseFormer, SparseFormerConfig
from sparse_vlm.encoder.checkpoints import load_strictly
from sparse_vlm.errors import UserError, unknown_choice
from sparse_vlm.files import read_object

MODEL_TYPE = "sparse_vlm"
TOWER = "model.vision_tower."
ENCODER = f"{TOWER}encoder."


def read_config(directory: str | Path) -> dict[str, Any]:
    """config.json of a directory; empty where there is none.

    Raises:
        UserError: it cannot be read, or is no JSON object.
    """
    file = Path(directory) / "config.json"
    return read_object(file) if file.exists() else {}


def saved_dtype(directory: str | Path) -> str:
    """In what the weights of a model directory are, as its config.json says: a key of DTYPES.

    Raises:
        UserError: config.json is damaged, or names another type.
    """
    dtype = read_config(directory).get("dtype") or "float32"
    if dtype not in DTYPES:
        raise unknown_choice(f"dtype in config.json of {directory}", str(dtype), DTYPES)
    return dtype


def short_name(directory: str | Path) -> str:
    """The last two parts of a path: stages and runs tend to be called "model"."""
    return "/".join(part for part in Path(directory).resolve().parts[-2:] if part != "/")


@contextmanager
def described_by_config(directory: str | Path) -> Iterator[None]:
    """For a block that takes the configuration of a model directory apart: what is not there becomes a UserError."""
    try:
        yield
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(f"config.json of {directory} is incomplete or damaged: {error!r}.") from error


def weight_shapes(directory: str | Path) -> dict[str, list[int]]:
    """Name -> shape of all weights of a directory, in one file or many.

    Raises:
        UserError: there are none, or they are damaged.
    """
    shapes: dict[str, list[int]] = {}
    for weights in _open_weights(Path(directory)):
        shapes |= {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118
    return shapes


def open_encoder(directory: str | Path) -> SparseFormer:
    """The SparseFormer of an encoder directory, or the one inside a model directory; strictly, in eval mode.

    Raises:
        UserError: it is neither, incomplete, or the model's vision tower is a dense ViT.
    """
    config = read_config(directory)
    if config.get("model_type") != MODEL_TYPE:
        return SparseFormer.from_pretrained(directory)
    with described_by_config(directory):
        vision = config["vision_config"]
        if vision["model_type"] != "sparseformer":
            raise UserError(f"The vision tower of {directory} is a dense ViT ({vision['model_type']}): it has no RoIs.")
        encoder_config = SparseFormerConfig.from_dict(vision["encoder"])
    encoder = SparseFormer(encoder_config)
    found: dict[str, Tensor] = {}
    for weights in _open_weights(Path(directory)):
        names = [name for name in weights.keys() if name.startswith(ENCODER)]  # noqa: SIM118
        found |= {name.removeprefix(ENCODER): weights.get_tensor(name) for name in names}
    load_strictly(encoder, found, source=f"the vision tower of {directory}")
    return encoder.eval()


def _open_weights(directory: Path) -> Iterator[Any]:
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise UserError(f"{directory} holds no weights (*.safetensors).")
    for file in files:
        with _readable(file), safe_open(file, framework="pt") as weights:
            yield weights


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} cannot be read: {error}.") from error
