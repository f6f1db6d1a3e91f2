"""A SparseFormer back in the CLIP that it was bootstrapped from: an open_clip model whose `visual` it is."""

import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import open_clip
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
HF_NAME = "hf_model_name"  # open_clip's, of a model of transformers as the text side
TEXT_FOLDER = "text"  # configuration of a text side that is a model of transformers


@dataclass(frozen=True)
class SparseClip:
    """An open_clip model whose image side is a SparseFormer, with what belongs to it.

    Attributes:
        model: `open_clip.CLIP` or `CustomTextCLIP`, as the teacher's, in eval mode; `visual` is open_clip's own adapter
            of timm models, `visual.trunk` the SparseFormer.
        tokenizer: captions -> int64[B, context].
        encoder_config: of the SparseFormer.
        model_config: what open_clip calls model_cfg, as JSON values.
    """

    model: Any
    tokenizer: Callable[[list[str]], Tensor]
    encoder_config: SparseFormerConfig
    model_config: dict[str, Any]

    @property
    def transform(self) -> Transform:
        """PIL image -> float32[3, crop, crop]: the SparseFormer's own preprocessing."""
        return Transform(self.encoder_config.preprocessing)

    @classmethod
    def from_teacher(cls, source: str, student: SparseFormer) -> "SparseClip":
        """The teacher's text side and temperature, with the student in the place of the image side.

        Args:
            source: the teacher as in `open_teacher`: "open_clip:NAME/TAG", "open_clip:NAME/TAG@WEIGHTS_FILE",
                or a directory of open_clip.
            student: bootstrapped from it; its weights are copied.

        Raises:
            UserError: the teacher is not open_clip's or cannot be opened, or its embeddings have another width.
        """
        teacher = open_teacher(source) if parse_spec(source).library == "open_clip" else None
        if teacher is None or teacher.text is None:
            raise UserError(
                f"{source!r} has no text side: write open_clip:NAME/TAG, open_clip:NAME/TAG@FILE, or a directory "
                "of open_clip."
            )
        text = teacher.text
        model, config = text.clip.requires_grad_(), text.config  # a teacher is frozen, a model of the user's is not
        cortex = student.config.cortex
        width = cortex.head_dim or cortex.width
        if width != config["embed_dim"]:
            raise UserError(
                f"The embeddings of {source} have {config['embed_dim']} channels, those of the SparseFormer {width}: "
                "it was not bootstrapped from this teacher."
            )
        if student.config.teacher not in ("", teacher.name):
            logger.warning(
                "The SparseFormer was bootstrapped from %s, the text side is that of %s: unless both are the same "
                "weights, its embeddings say nothing to this text side.",
                student.config.teacher,
                teacher.name,
            )
        config["vision_cfg"] = _vision_config(student)
        model.visual = _visual(student, config["embed_dim"], config["vision_cfg"])
        open_clip.model.set_model_preprocess_cfg(model, _preprocess_config(student.config))
        tokenizer = text.tokenizer
        if not isinstance(tokenizer, SimpleTokenizer | HFTokenizer):
            raise UserError(f"The tokenizer of {source}, a {type(tokenizer).__name__}, cannot be saved by open_clip.")
        return cls(model.eval(), tokenizer, student.config, config)

    def save(self, directory: str | Path) -> None:
        """Writes an open_clip directory, atomically: configuration, weights, tokenizer where it has files.

        `open_clip.create_model("local-dir:DIRECTORY")` opens it too, once `import sparse_vlm` has registered a
        released architecture, or `SparseClip.load` another one. Of a text side that is a model of transformers the
        directory holds the configuration; open_clip itself finds it where it was saved, `SparseClip.load` anywhere.
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
        """Opens a directory of `save`, strictly.

        Raises:
            UserError: it is none, or a file of it is missing or damaged.
        """
        directory = Path(directory)
        for file in (CONFIG_FILE, ENCODER_FILE, WEIGHTS_FILE):
            if not (directory / file).is_file():
                raise UserError(f"{directory} is no directory of a CLIP with a SparseFormer: it has no {file}.")
        encoder_config = SparseFormerConfig.from_dict(_read_json(directory / ENCODER_FILE))
        config = _read_json(directory / CONFIG_FILE).get("model_cfg", {})
        text = config.get("text_cfg", {})
        if HF_NAME in text and (directory / TEXT_FOLDER).is_dir():
            text |= {HF_NAME: str(directory.resolve() / TEXT_FOLDER), "hf_model_pretrained": False}
        timm_name(encoder_config)  # registers it: open_clip asks timm for the architecture by name
        name = f"local-dir:{directory}"
        model = create_clip(str(directory), name, require_pretrained=True, text_cfg=text)
        return cls(model.eval(), open_tokenizer(str(directory), name), encoder_config, config)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is no valid JSON: {error}.") from error


def _vision_config(student: SparseFormer) -> dict[str, Any]:
    """open_clip's CLIPVisionCfg of an image side that is a timm model with its own pooling and projection."""
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
    """open_clip's PreprocessCfg, which knows one size only."""
    data = config.preprocessing
    if data.resize != data.crop:
        logger.warning(
            "open_clip's own transform resizes to %d pixels, where this SparseFormer's resizes to %d and crops %d: "
            "SparseClip.transform is the exact one.",
            data.crop,
            data.resize,
            data.crop,
        )
    values = asdict(data)
    return {"size": data.crop, **{key: values[key] for key in ("mean", "std", "interpolation", "resize_mode")}}
