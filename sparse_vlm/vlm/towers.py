"""Vision towers of a VLM: a SparseFormer, or a dense ViT to compare it with.

The ViT of an open_clip directory becomes transformers' own CLIPVisionModel, as in LLaVA-1.5, and any other teacher a
DenseViTModel. transformers' TimmWrapperModel does not serve: it returns square feature maps without CLS, and its
configuration names neither width nor patch size.
"""

from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedModel

from sparse_vlm.bootstrap.teachers import open_teacher
from sparse_vlm.encoder import Preprocessing, SparseFormer
from sparse_vlm.encoder.runtime.inference import optimize_for_inference
from sparse_vlm.errors import UserError
from sparse_vlm.files import read_object
from sparse_vlm.vlm.dense.clip import open_clip_vision
from sparse_vlm.vlm.dense.vit import DenseViTModel
from sparse_vlm.vlm.vision import SparseFormerVisionModel

OPEN_CLIP_CONFIG = "open_clip_config.json"


class VisionTower(NamedTuple):
    """A vision encoder as part of a VLM.

    Attributes:
        model: a vision model of transformers; its configuration becomes the VLM's `vision_config`.
        preprocessing: the preprocessing of the weights.
        depth: number of blocks. Hidden state 0 enters the first block, hidden state `depth` leaves the last one.
    """

    model: PreTrainedModel
    preprocessing: Preprocessing
    depth: int


def open_tower(
    source: str | Path, aspect: str = "crop", *, image_size: int | None = None, teacher_layer: int | None = None
) -> VisionTower:
    """Open a vision encoder. The files in a directory determine its kind; the directory name is ignored.

    Args:
        source: a directory of `SparseFormer.save_pretrained` (config.json), a directory of open_clip
            (open_clip_config.json and the weights) with open_clip's own VisionTransformer as the image side, or
            another teacher, see `open_teacher`.
        aspect: "crop" or "native"; see `SparseFormerVisionConfig`.
        image_size, teacher_layer: of a teacher alone: its input side, and its last block; see `open_teacher`.
    """
    directory = Path(source)
    changed = image_size is not None or teacher_layer is not None
    is_clip = (directory / OPEN_CLIP_CONFIG).is_file()
    if is_clip or _names_teacher(source):
        if aspect != "crop":
            raise UserError(f"The ViT in {source} sees squares only: aspect {aspect!r} needs a SparseFormer.")
        return _open_clip(directory) if is_clip and not changed else _open_vit(str(source), image_size, teacher_layer)
    if changed:
        raise UserError(f"--image_size and --teacher_layer are for a teacher, and {source} is none: leave them out.")
    if directory.is_dir() and not (directory / "config.json").is_file():
        raise UserError(
            f"{directory} has no vision encoder: neither a SparseFormer (config.json) nor an open_clip model "
            f"({OPEN_CLIP_CONFIG})."
        )
    encoder = SparseFormer.from_pretrained(directory)
    model = SparseFormerVisionModel.from_encoder(encoder, aspect)
    return VisionTower(model, encoder.config.preprocessing, encoder.config.cortex.depth)


def use_cuda_graphs(model: Any) -> None:
    """Run a VLM's SparseFormer from CUDA graphs (`optimize_for_inference`): the same tokens, with lower latency.

    Args:
        model: returned by `load_vlm`, on a CUDA device.
    """
    tower = getattr(model.model, "vision_tower", None)
    if not isinstance(tower, SparseFormerVisionModel):
        raise UserError(f"CUDA graphs need a SparseFormer, but the vision tower is a {type(tower).__name__}.")
    if tower.device.type != "cuda":
        raise UserError(f"CUDA graphs need a CUDA device, and the model is on {tower.device}: add --device cuda.")
    optimize_for_inference(tower.encoder)


def _names_teacher(source: str | Path) -> bool:
    """Return whether `source` is a teacher's name, or a directory of `timm.models.save_for_hf`."""
    if str(source).startswith(("timm:", "open_clip:")):
        return True
    config = Path(source) / "config.json"
    return config.is_file() and "architecture" in read_object(config)


def _open_clip(directory: Path) -> VisionTower:
    model, preprocessing = open_clip_vision(directory)
    return VisionTower(model, preprocessing, model.config.num_hidden_layers)


def _open_vit(teacher: str, image_size: int | None, layer: int | None) -> VisionTower:
    opened = open_teacher(teacher, image_size=image_size, layer=layer)
    model = DenseViTModel.from_trunk(opened.trunk, opened.cortex)
    return VisionTower(model.requires_grad_(True).eval(), opened.preprocessing, opened.cortex.depth)
