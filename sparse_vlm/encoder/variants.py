"""The released models as numbers: one literal table."""

from sparse_vlm.encoder.config import CortexConfig, FocusConfig, SparseFormerConfig, StemConfig
from sparse_vlm.encoder.preprocessing import (
    CLIP_MEAN,
    CLIP_STD,
    INCEPTION_MEAN,
    INCEPTION_STD,
    Preprocessing,
)
from sparse_vlm.errors import unknown_choice


def _v1(tokens: int, focus_width: int, width: int, depth: int) -> SparseFormerConfig:
    """`depth` counts v1's units after the transition; the first of them samples and belongs to the focus."""
    return SparseFormerConfig(
        stem=StemConfig(channels=96),
        focus=FocusConfig(
            generation="v1",
            tokens=tokens,
            width=focus_width,
            heads=64,
            points=36,
            generator_width=focus_width // 4,
            last_heads=64,
            last_generator_width=width // 4,
            eps=1e-6,
        ),
        cortex=CortexConfig(
            architecture="vit_base_patch16_224",
            depth=depth - 1,
            width=width,
            heads=64,
            head_dim=1000,
            options={"class_token": False, "global_pool": "avg", "fc_norm": True},
            norm_eps=1e-6,
        ),
    )


def _bootstrapped(focus_width: int, tokens: int, cortex: CortexConfig, mean: tuple, std: tuple) -> SparseFormerConfig:
    focus = FocusConfig("bootstrapped", tokens=tokens, width=focus_width, heads=focus_width // 64)
    return SparseFormerConfig(StemConfig(64), focus, cortex, Preprocessing(mean=mean, std=std))


_AUGREG_B = CortexConfig("vit_base_patch16_384", depth=8, width=768, heads=12, head_dim=1000, norm_eps=1e-5)
_AUGREG_L = CortexConfig("vit_large_patch16_384", depth=16, width=1024, heads=16, head_dim=1000, norm_eps=1e-5)
_CLIP_B = CortexConfig("vit_base_patch16_clip_quickgelu_224", 8, 768, 12, head_dim=512, head_bias=False, norm_eps=1e-5)
_CLIP_L = CortexConfig(
    "vit_large_patch14_clip_quickgelu_224", 16, 1024, 16, head_dim=768, head_bias=False, norm_eps=1e-5
)

VARIANTS: dict[str, SparseFormerConfig] = {
    "sparseformer-v1-t": _v1(tokens=49, focus_width=256, width=512, depth=8),
    "sparseformer-v1-s": _v1(tokens=64, focus_width=320, width=640, depth=8),
    "sparseformer-v1-b": _v1(tokens=81, focus_width=384, width=768, depth=10),
    "sparseformer-augreg-b": _bootstrapped(384, 48, _AUGREG_B, INCEPTION_MEAN, INCEPTION_STD),
    "sparseformer-augreg-l": _bootstrapped(512, 48, _AUGREG_L, INCEPTION_MEAN, INCEPTION_STD),
    "sparseformer-clip-b": _bootstrapped(384, 48, _CLIP_B, CLIP_MEAN, CLIP_STD),
    "sparseformer-clip-l": _bootstrapped(512, 63, _CLIP_L, CLIP_MEAN, CLIP_STD),
}


def list_encoders() -> list[str]:
    """Names that `create_encoder` takes."""
    return list(VARIANTS)


def variant_config(name: str) -> SparseFormerConfig:
    """The configuration of a variant.

    Raises:
        UserError: unknown name (the nearest ones are named).
    """
    if name not in VARIANTS:
        raise unknown_choice("encoder variant", name, VARIANTS)
    return VARIANTS[name]
