"""What an encoder variant or directory holds, for people."""

from pathlib import Path

import torch

from sparse_vlm.encoder.checkpoints import load_config
from sparse_vlm.encoder.config import SparseFormerConfig
from sparse_vlm.encoder.model import SparseFormer
from sparse_vlm.encoder.variants import VARIANTS, variant_config


def describe(name: str | None) -> str:
    """A text about one variant or encoder directory; about all variants, a line each, when `name` is None.

    Raises:
        UserError: `name` is neither a variant nor an encoder directory.
    """
    if name is None:
        return "\n".join(f"{variant:24}{_summary(config)}" for variant, config in VARIANTS.items())
    return describe_config(name, load_config(name) if Path(name).is_dir() else variant_config(name))


def describe_config(name: str, config: SparseFormerConfig) -> str:
    """A text about an encoder of these numbers; `name` stands at its beginning."""
    focus, cortex, pre = config.focus, config.cortex, config.preprocessing
    lines = [
        f"{name}: {_summary(config)}",
        f"cortex: {cortex.depth} blocks of {cortex.architecture}, outputs {cortex.head_dim or 'none'}",
        f"focus: {focus.generation}, width {focus.width}, {focus.points} sampling points, {focus.repeats} repeats",
        f"preprocessing: resize {pre.resize} ({pre.interpolation}), crop {pre.crop}, mean {pre.mean}, std {pre.std}",
    ]
    if config.teacher:
        lines.append(f"teacher: {config.teacher}")
    if config.licence:
        lines.append(f"licence: {config.licence}")
    return "\n".join(lines)


def _summary(config: SparseFormerConfig) -> str:
    with torch.device("meta"):
        encoder = SparseFormer(config)
    registers = encoder.num_register_tokens
    prefix = " + CLS" if encoder.num_prefix_tokens > registers else ""
    prefix += f" + {registers} registers" if registers else ""
    millions = encoder.num_parameters / 1e6
    return f"{config.focus.tokens}{prefix} tokens × {config.cortex.width}, {millions:.1f}M parameters"
