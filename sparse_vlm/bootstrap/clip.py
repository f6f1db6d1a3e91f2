"""A CLIP whose image encoder is replaced by a SparseFormer that was bootstrapped from it, as an open_clip model."""

import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch.nn.functional as F
from open_clip.timm_model import TimmModel
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
from safetensors.torch import save_file
from torch import Tensor, nn

from sparse_vlm.bootstrap.teachers import open_teacher, parse_spec
from sparse_vlm.bootstrap.teachers.open_clip import create_clip, open_tokenizer
from sparse_vlm.encoder import SparseFormer, SparseFormerConfig
from sparse_vlm.encoder.checkpoints import load_strictly
from sparse_vlm.encoder.preprocessing import Transform
from sparse_vlm.errors import UserError
from sparse_vlm.files import new_directory, write_json
from sparse_vlm.integrations.timm import timm_name

logger = logging.getLogger(__name__)
CONFIG_FILE, WEIGHTS_FILE = "open_clip_config.json", "open_clip_model.safetensors"  # open_clip's own names
ENCODER_FILE = "sparseformer.json"
HF_NAME = "hf_model_name"  # open_clip's key for a text encoder from transformers
TEXT_FOLDER = "text"  # configuration of a text encoder from transformers


@dataclass(frozen=True)
class SparseClip:
    """An open_clip model whose image encoder is a SparseFormer, with its tokenizer and configuration.

    Attributes:
        model: `open_clip.CLIP` or `CustomTextCLIP`, like the teacher, in evaluation mode. `visual` is open_clip's
            adapter for timm models, `visual.trunk` is the SparseFormer.
        tokenizer: captions -> int64[B, context].
        encoder_config: configuration of the SparseFormer.
        model_config: open_clip's model_cfg, as JSON values.
    """

    model: Any
    tokenizer: Callable[[list[str]], Tensor]
    encoder_config: SparseFormerConfig
    model_config: dict[str, Any]

    @property
    def transform(self) -> Transform:
        """Preprocessing of the SparseFormer: image -> float32[3, crop, crop]."""
        return Transform(self.encoder_config.preprocessing)

    def encode_image(self, images: Tensor, rois: Tensor | None = None, tokens: int | None = None) -> Tensor:
        """Compute unit embeddings float[B, D] of images float[B, 3, H, W].

        `rois` and `tokens` are those of `SparseFormer.forward`.
        """
        visual = self.model.visual
        return F.normalize(visual.head(visual.trunk(images, rois, tokens)), dim=-1)

    @classmethod
    def from_teacher(cls, source: str, student: SparseFormer) -> "SparseClip":
        """Replace the teacher's image encoder by the student. Text encoder and temperature are the teacher's.

        Args:
            source: specification of the teacher for `open_teacher`: "open_clip:NAME/TAG",
                "open_clip:NAME/TAG@WEIGHTS_FILE", or an open_clip directory.
            student: SparseFormer bootstrapped from this teacher; its weights are copied.

        Raises:
            UserError: the teacher is not an open_clip model, cannot be opened, or its embeddings have another width.
        """
        teacher = open_teacher(source) if parse_spec(source).library == "open_clip" else None
        if teacher is None or teacher.text is None:
            raise UserError(
                f"{source!r} has no text encoder: write open_clip:NAME/TAG, open_clip:NAME/TAG@FILE, or the path of an "
                "open_clip directory."
            )
        text = teacher.text
        model, config = text.clip.requires_grad_(), text.config  # a teacher is frozen, but this model need not be
        cortex = student.config.cortex
        width = cortex.head_dim or cortex.width
        if width != config["embed_dim"]:
            raise UserError(
                f"The embeddings of {source} have {config['embed_dim']} channels, but those of the SparseFormer have "
                f"{width}: it was not bootstrapped from this teacher."
            )
        if student.config.teacher not in ("", teacher.name):
            logger.warning(
                "The SparseFormer was bootstrapped from %s, but the text encoder is that of %s: unless both are the "
                "same weights, their embeddings do not match.",
                student.config.teacher,
                teacher.name,
            )
        config["vision_cfg"] = _vision_config(student)
        model.visual = _visual(student, config["embed_dim"], config["vision_cfg"])
        open_clip.model.set_model_preprocess_cfg(model, _preprocess_config(student.config))
        tokenizer = text.tokenizer
        if not isinstance(tokenizer, SimpleTokenizer | HFTokenizer):
            raise UserError(f"open_clip cannot save the tokenizer of {source}, a {type(tokenizer).__name__}.")
        return cls(model.eval(), tokenizer, student.config, config)

    def save(self, directory: str | Path) -> None:
        """Write an open_clip directory, atomically: configuration, weights, and the tokenizer if it has files.

        `open_clip.create_model("local-dir:DIRECTORY")` opens it too, after the architecture is registered:
        `import sparse_vlm` registers the released ones, `SparseClip.load` any other. If the text encoder comes from
        transformers, the directory contains its configuration: open_clip itself only finds it if the directory has not
        been moved, `SparseClip.load` always.
        """
        config = self.model_config
        if HF_NAME in config["text_cfg"]:
            config = config | {"text_cfg": config["text_cfg"] | {HF_NAME: str(Path(directory).resolve() / TEXT_FOLDER)}}
        weights = {name: value.contiguous() for name, value in self.model.state_dict().items()}
        with new_directory(directory) as temporary:
            preprocess = _preprocess_config(self.encoder_config)
            write_json(temporary / CONFIG_FILE, {"model_cfg": config, "preprocess_cfg": preprocess})
            write_json(temporary / ENCODER_FILE, self.encoder_config.to_dict())
            save_file(weights, temporary / WEIGHTS_FILE, metadata={"format": "pt"})
            if isinstance(self.tokenizer, HFTokenizer):
                self.tokenizer.save_pretrained(temporary)
            if HF_NAME in config["text_cfg"]:
                self.model.text.config.save_pretrained(temporary / TEXT_FOLDER)

    @classmethod
    def load(cls, directory: str | Path) -> "SparseClip":
        """Load a directory written by `save`, strictly.

        Raises:
            UserError: a file is missing or damaged.
        """
        directory = Path(directory)
        for file in (CONFIG_FILE, ENCODER_FILE, WEIGHTS_FILE):
            if not (directory / file).is_file():
                raise UserError(f"{directory} is not a directory of SparseClip.save: it has no {file}.")
        encoder_config = SparseFormerConfig.from_dict(_read_json(directory / ENCODER_FILE))
        config = _read_json(directory / CONFIG_FILE).get("model_cfg", {})
        text = config.get("text_cfg", {})
        if HF_NAME in text and (directory / TEXT_FOLDER).is_dir():
            text |= {HF_NAME: str(directory.resolve() / TEXT_FOLDER), "hf_model_pretrained": False}
        timm_name(encoder_config)  # registers the architecture, which open_clip asks timm for by name
        name = f"local-dir:{directory}"
        model = create_clip(str(directory), name, require_pretrained=True, text_cfg=text)
        return cls(model.eval(), open_tokenizer(str(directory), name), encoder_config, config)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON: {error}.") from error


def _vision_config(student: SparseFormer) -> dict[str, Any]:
    """open_clip's CLIPVisionCfg for a timm model with its own pooling and projection."""
    return {
        "timm_model_name": timm_name(student.config),
        "timm_model_pretrained": False,
        "timm_pool": student.cortex.trunk.global_pool,
        "timm_proj": "" if student.config.cortex.head_dim else "none",
        "image_size": student.config.preprocessing.crop,
    }


def _visual(student: SparseFormer, embed_dim: int, config: dict[str, Any]) -> nn.Module:
    visual = TimmModel(
        config["timm_model_name"],
        embed_dim=embed_dim,
        image_size=config["image_size"],
        pool=config["timm_pool"],
        proj=config["timm_proj"],
    )
    load_strictly(visual.trunk, student.state_dict(), source="the SparseFormer")
    return visual


def _preprocess_config(config: SparseFormerConfig) -> dict[str, Any]:
    """open_clip's PreprocessCfg, which has a single size."""
    data = config.preprocessing
    if data.resize != data.crop:
        logger.warning(
            "open_clip's own transform resizes to %d pixels, but this SparseFormer's resizes to %d and crops to %d: "
            "use SparseClip.transform.",
            data.crop,
            data.resize,
            data.crop,
        )
    values = asdict(data)
    return {"size": data.crop, **{key: values[key] for key in ("mean", "std", "interpolation", "resize_mode")}}
