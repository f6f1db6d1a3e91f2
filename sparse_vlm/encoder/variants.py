"""The released models as two literal tables: their configurations, and the files with the authors' weights."""

from pathlib import Path
from urllib.error import URLError

import torch

from sparse_vlm.encoder.config import CortexConfig, FocusConfig, SparseFormerConfig, StemConfig
from sparse_vlm.encoder.preprocessing import (
    CLIP_MEAN,
    CLIP_STD,
    INCEPTION_MEAN,
    INCEPTION_STD,
    Preprocessing,
)
from sparse_vlm.errors import UserError, unknown_choice


def _v1(tokens: int, focus_width: int, width: int, depth: int) -> SparseFormerConfig:
    """`depth` is the number of units after the transition; the first of them belongs to the focusing transformer."""
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
    """List the names that `create_encoder` accepts."""
    return list(VARIANTS)


def variant_config(name: str) -> SparseFormerConfig:
    """Return the configuration of a variant."""
    if name not in VARIANTS:
        raise unknown_choice("encoder variant", name, VARIANTS)
    return VARIANTS[name]


RELEASE = "https://github.com/showlab/sparseformer/releases/download/v2.0.0-refactor"
# The authors publish no checksums. Files are opened with `weights_only` and loaded strictly.
RELEASED_FILES = {
    "sparseformer-v1-t": "sparseformer_v1_tiny_converted.pth",
    "sparseformer-v1-s": "sparseformer_v1_small_converted.pth",
    "sparseformer-v1-b": "sparseformer_v1_base_converted.pth",
    "sparseformer-augreg-b": "sparseformer_btsp_augreg_base_converted.pth",
    "sparseformer-augreg-l": "sparseformer_btsp_augreg_large_converted.pth",
    "sparseformer-clip-b": "sparseformer_btsp_openai_clip_base_converted.pth",
    "sparseformer-clip-l": "sparseformer_btsp_openai_clip_large_converted.pth",
}


def fetch_released(variant: str) -> Path:
    """Return the path of a released checkpoint in `$TORCH_HOME/hub/checkpoints`, after downloading it if necessary.

    Args:
        variant: e.g. "sparseformer-clip-l".

    Raises:
        UserError: the variant is unknown, or the file can neither be found nor downloaded.
    """
    variant_config(variant)
    address = f"{RELEASE}/{RELEASED_FILES[variant]}"
    file = Path(torch.hub.get_dir()) / "checkpoints" / RELEASED_FILES[variant]
    if file.is_file():
        return file
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(address, str(file))  # writes a temporary file, then renames it
    except (URLError, OSError) as error:
        raise UserError(
            f"Cannot download the released weights of {variant} from {address} ({error}). "
            f"Without a network, save that file as {file}, or use your own weights."
        ) from error
    return file
