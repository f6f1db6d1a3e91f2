"""Teachers: any pre-trained timm or open_clip VisionTransformer, opened by name or from local files."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.data import resolve_model_data_config
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from sparse_vlm.encoder import CortexConfig, Preprocessing
from sparse_vlm.encoder.checkpoints import load_strictly, read_weights
from sparse_vlm.encoder.cortex import build_trunk
from sparse_vlm.errors import UserError, unknown_choice


class Teacher(nn.Module):
    """A frozen ViT with everything that belongs to it.

    Attributes:
        name: what it was opened as, without the folders of this machine.
        trunk: timm VisionTransformer, its head included; in eval mode, without gradients.
        cortex: the numbers of the trunk; `depth` is the teacher's N blocks.
        preprocessing: mean, std, input size of the weights.
        licence: licence of the weights, "" if unknown.
    """

    def __init__(
        self,
        name: str,
        trunk: nn.Module,
        cortex: CortexConfig,
        preprocessing: Preprocessing,
        licence: str = "",
        text: "TextSide | None" = None,
    ) -> None:
        super().__init__()
        self.name, self.cortex, self.preprocessing, self.licence = name, cortex, preprocessing, licence
        self.trunk: nn.Module = trunk
        self.text = text
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """float[B, 3, H, W] at the teacher's input size -> final representation float[B, D] (pooled, projected)."""
        return self.trunk(images)

    def train(self, mode: bool = True) -> "Teacher":
        """A teacher stays in eval mode: no dropout, no drop path."""
        return super().train(False)


class TextSide(nn.Module):
    """The text encoder of an open_clip model, for zero-shot classification."""

    def __init__(self, clip: nn.Module, tokenizer: Any) -> None:
        super().__init__()
        self.clip: Any = clip  # its encode_text is what nn.Module does not declare
        self.tokenizer = tokenizer

    @torch.no_grad()
    def forward(self, captions: list[str]) -> Tensor:
        """Captions -> unit embeddings float[len(captions), D]."""
        device = next(self.parameters()).device
        return F.normalize(self.clip.encode_text(self.tokenizer(captions).to(device)), dim=-1)


def open_teacher(spec: str, pretrained: bool = True, image_size: int | None = None) -> Teacher:
    """Opens a teacher.

    Args:
        spec: "timm:NAME[.TAG]", "timm:NAME@WEIGHTS_FILE", "open_clip:NAME[/TAG]", or a directory that
            `open_clip` wrote (open_clip_config.json beside the weights).
        pretrained: False: random weights (tests).
        image_size: input side in pixels instead of the model's own; position embeddings are resampled.

    Raises:
        UserError: the specification is malformed, the model unknown, unreachable, or no VisionTransformer.
    """
    if Path(spec).is_dir():
        return _open_clip_teacher(Path(spec).name, f"local-dir:{spec}", None, pretrained, image_size)
    library, _, name = spec.partition(":")
    if library == "timm" and name:
        return _timm_teacher(spec, name, pretrained, image_size)
    if library == "open_clip" and name:
        model, _, tag = name.partition("/")
        return _open_clip_teacher(spec, model, tag or None, pretrained, image_size)
    raise UserError(
        f"Cannot open the teacher {spec!r}: it is no directory. Write timm:NAME, timm:NAME@FILE, "
        "open_clip:NAME/TAG, or the path of a directory with an open_clip_config.json."
    )


def _timm_teacher(spec: str, name: str, pretrained: bool, image_size: int | None) -> Teacher:
    name, _, file = name.partition("@")
    if not timm.is_model(name.partition(".")[0]):
        raise unknown_choice("timm model", name, timm.list_models("*vit*"))
    if file and not Path(file).is_file():
        raise UserError(f"There is no weights file {file} (from the teacher {spec!r}).")
    options: dict[str, Any] = {} if image_size is None else {"img_size": image_size}
    try:
        trunk = timm.create_model(name, pretrained=pretrained and not file, **options)
    except (OSError, RuntimeError, TypeError) as error:
        raise UserError(f"timm cannot open {name}: {str(error).splitlines()[0]}") from error
    if not isinstance(trunk, VisionTransformer):
        raise UserError(
            f"{name} is a {type(trunk).__name__}: only a VisionTransformer can be inherited, whose blocks "
            "take and give plain token sequences."
        )
    if file and pretrained:
        # antialias=False: how DINOv2's authors resample position embeddings
        weights = checkpoint_filter_fn(read_weights(file), trunk, antialias=False)
        load_strictly(trunk, weights, source=f"{file} as {name}")
    data = resolve_model_data_config(trunk)
    crop = image_size or data["input_size"][1]
    preprocessing = Preprocessing(
        round(crop / data["crop_pct"]), crop, data["mean"], data["std"], data["interpolation"]
    )
    licence = timm.get_pretrained_cfg_value(name, "license")
    shown = f"timm:{name}@{Path(file).name}" if file else spec
    return Teacher(shown, trunk, _cortex_of(name, trunk), preprocessing, str(licence or ""))


def _cortex_of(architecture: str, trunk: VisionTransformer) -> CortexConfig:
    head: Any = trunk.head
    block: Any = trunk.blocks[0]
    return CortexConfig(
        architecture=architecture.partition(".")[0],
        depth=len(trunk.blocks),
        width=trunk.embed_dim,
        heads=block.attn.num_heads,
        head_dim=head.out_features if isinstance(head, nn.Linear) else 0,
        head_bias=isinstance(head, nn.Linear) and head.bias is not None,
    )


def _open_clip_teacher(spec: str, name: str, tag: str | None, pretrained: bool, image_size: int | None) -> Teacher:
    import open_clip

    if not name.startswith("local-dir:") and name not in open_clip.list_models():
        raise unknown_choice("open_clip model", name, open_clip.list_models())
    if pretrained and tag is None and not name.startswith("local-dir:"):
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name))
        raise UserError(f"Which weights of {name}? Write open_clip:{name}/TAG with one of: {tags}.")
    try:
        clip = open_clip.create_model(
            name, pretrained=tag if pretrained else None, load_weights=pretrained, force_image_size=image_size
        )
    except (OSError, RuntimeError) as error:
        raise UserError(f"open_clip cannot open {spec}: {str(error).splitlines()[0]}") from error
    trunk, cortex = _trunk_of_clip(spec, clip)
    data = open_clip.get_model_preprocess_cfg(clip)
    crop = data["size"][0] if isinstance(data["size"], tuple | list) else data["size"]
    preprocessing = Preprocessing(crop, crop, data["mean"], data["std"], data.get("interpolation", "bicubic"))
    clip.visual = nn.Identity()  # the trunk is the image side
    return Teacher(spec, trunk, cortex, preprocessing, text=TextSide(clip, open_clip.get_tokenizer(name)))


def _trunk_of_clip(spec: str, clip: nn.Module) -> tuple[VisionTransformer, CortexConfig]:
    """open_clip's own ViT as a timm VisionTransformer, converted by timm; its numbers are read off the modules."""
    visual: Any = clip.visual
    if not hasattr(visual, "transformer") or not hasattr(visual, "class_embedding"):
        raise UserError(
            f"The image side of {spec} is a {type(visual).__name__}: here only open_clip's VisionTransformer can be "
            "inherited; open timm's version of the model as timm:NAME instead."
        )
    block = visual.transformer.resblocks[0]
    quick_gelu = type(block.mlp.gelu).__name__ == "QuickGELU"
    cortex = CortexConfig(
        architecture="vit_base_patch16_clip_quickgelu_224" if quick_gelu else "vit_base_patch16_clip_224",
        depth=len(visual.transformer.resblocks),
        width=visual.conv1.out_channels,
        heads=block.attn.num_heads,
        head_dim=visual.proj.shape[1],
        head_bias=False,
        options={"mlp_ratio": block.mlp.c_fc.out_features / visual.conv1.out_channels},
    )
    embedding = {"patch_size": visual.patch_size[0], "img_size": visual.image_size[0]}
    trunk = build_trunk(replace(cortex, options={**cortex.options, **embedding}))
    weights = checkpoint_filter_fn({f"visual.{key}": value for key, value in visual.state_dict().items()}, trunk)
    weights.pop("head.bias")  # timm's conversion adds zeros for a projection that has no bias
    trunk.load_state_dict(weights)
    return trunk, cortex
