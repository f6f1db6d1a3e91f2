"""Descriptions of variants, encoder directories and model directories. Weights are counted without loading them."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from sparse_vlm.encoder import SparseFormer, SparseFormerConfig
from sparse_vlm.encoder.checkpoints import load_config
from sparse_vlm.encoder.variants import VARIANTS, variant_config
from sparse_vlm.errors import UserError
from sparse_vlm.model_directory import MODEL_TYPE, TOWER, described_by_config, read_config, weight_shapes

# Prefixes of the weights of a model directory; all other weights are the language model's.
PARTS = {TOWER: "vision encoder", "model.multi_modal_projector.": "projector"}


def describe(name: str | None) -> str:
    """Describe a variant, an encoder directory or a model directory; list all variants, a line each, if `name` is None.

    Raises:
        UserError: `name` is none of these, or the directory is incomplete.
    """
    if name is None:
        return "\n".join(f"{variant:24}{_summary(config)}" for variant, config in VARIANTS.items())
    if "/" in name and not Path(name).is_dir():  # a variant's name has no slash
        raise UserError(f"There is no directory {name}.")
    config = read_config(name)
    if config.get("model_type") != MODEL_TYPE:
        return _describe_encoder(name, load_config(name) if Path(name).is_dir() else variant_config(name))
    with described_by_config(name):
        return _describe_vlm(name, config)


def _describe_vlm(name: str, config: dict[str, Any]) -> str:
    counts = _count_parameters(Path(name))
    size = {part: f"{count / 1e6:.1f}M parameters" for part, count in counts.items()}
    text, vision, provenance = config["text_config"], config["vision_config"], config.get("provenance") or {}
    lines = [
        f"{name}: a vision-language model, {config['image_seq_length']} visual tokens per image, "
        f"{counts.total() / 1e6:.1f}M parameters ({config.get('dtype') or 'unknown dtype'})",
        f"language model: {provenance.get('language_model') or 'unknown name'} ({text['model_type']}, "
        f"{text.get('num_hidden_layers')} layers × {text.get('hidden_size')}, vocabulary {text.get('vocab_size')}), "
        f"{size['language model']}",
        f"projector: {config['projector_type']} on hidden state {config['vision_feature_layer']}, {size['projector']}",
        *(f"trained: {stage['stage']} on {', '.join(stage['data'])}" for stage in provenance.get("stages", [])),
    ]
    if vision["model_type"] != "sparseformer":
        return "\n".join([*lines, f"vision encoder: a dense ViT ({vision['model_type']}), {size['vision encoder']}"])
    encoder = SparseFormerConfig.from_dict(vision["encoder"])
    return "\n".join([*lines, _describe_encoder("vision encoder", encoder)])


def _count_parameters(directory: Path) -> Counter[str]:
    """Count the numbers in the weights of a model directory by part; a tied output layer does not count twice."""
    counts: Counter[str] = Counter()
    for name, shape in weight_shapes(directory).items():
        part = next((part for prefix, part in PARTS.items() if name.startswith(prefix)), "language model")
        counts[part] += math.prod(shape)
    return counts


def _describe_encoder(name: str, config: SparseFormerConfig) -> str:
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
    """Tokens, width and number of parameters in a line; the encoder is built without memory for its weights."""
    with torch.device("meta"):
        encoder = SparseFormer(config)
    registers = encoder.num_register_tokens
    prefix = " + CLS" if encoder.num_prefix_tokens > registers else ""
    prefix += f" + {registers} registers" if registers else ""
    millions = encoder.num_parameters / 1e6
    return f"{config.focus.tokens}{prefix} tokens × {config.cortex.width}, {millions:.1f}M parameters"
