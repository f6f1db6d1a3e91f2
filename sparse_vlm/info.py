"""What a directory or variant holds, for people: `sparse-vlm info`. Weights are counted, not loaded."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

from sparse_vlm.encoder import SparseFormerConfig, info
from sparse_vlm.model_directory import MODEL_TYPE, TOWER, described_by_config, read_config, weight_shapes

# what the names of a model directory's weights begin with; the rest is the language model's
PARTS = {TOWER: "vision encoder", "model.multi_modal_projector.": "projector"}


def describe(name: str | None) -> str:
    """A text about a variant, an encoder directory or a model directory; about all variants when `name` is None.

    Raises:
        UserError: it is none of these, or incomplete.
    """
    config = {} if name is None else read_config(name)
    if name is None or config.get("model_type") != MODEL_TYPE:
        return info.describe(name)
    with described_by_config(name):
        return _describe_vlm(name, config)


def _describe_vlm(name: str, config: dict[str, Any]) -> str:
    counts = _count_parameters(Path(name))
    size = {part: f"{count / 1e6:.1f}M parameters" for part, count in counts.items()}
    text, vision, provenance = config["text_config"], config["vision_config"], config.get("provenance") or {}
    lines = [
        f"{name}: a vision-language model, {config['image_seq_length']} visual tokens a picture, "
        f"{counts.total() / 1e6:.1f}M parameters ({config.get('dtype') or 'dtype not known'})",
        f"language model: {provenance.get('language_model') or 'name not known'} ({text['model_type']}, "
        f"{text.get('num_hidden_layers')} layers × {text.get('hidden_size')}, vocabulary {text.get('vocab_size')}), "
        f"{size['language model']}",
        f"projector: {config['projector_type']} of hidden state {config['vision_feature_layer']}, {size['projector']}",
        *(f"trained: {stage['stage']} on {', '.join(stage['data'])}" for stage in provenance.get("stages", [])),
    ]
    if vision["model_type"] != "sparseformer":
        return "\n".join([*lines, f"vision encoder: a dense ViT ({vision['model_type']}), {size['vision encoder']}"])
    encoder = SparseFormerConfig.from_dict(vision["encoder"])
    return "\n".join([*lines, info.describe_config("vision encoder", encoder)])


def _count_parameters(directory: Path) -> Counter[str]:
    """Numbers in the weights of a model directory, by part; an output layer that is tied is not among them."""
    counts: Counter[str] = Counter()
    for name, shape in weight_shapes(directory).items():
        part = next((part for prefix, part in PARTS.items() if name.startswith(prefix)), "language model")
        counts[part] += math.prod(shape)
    return counts
