"""Top-1 accuracy of an encoder with a classification head.

    python -m eval.encoders.imagenet --encoder runs/finetune --images imagenet/val --output top1.json

Takes SparseFormers trained on ImageNet (v1, or bootstrapped from a classifier) or by `train.finetune`. The head of a
CLIP-like encoder is an embedding: use `eval.encoders.clip_benchmark` for its zero-shot accuracy. Published on
ImageNet-1k: v1 tiny, small and base 81.0, 82.0 and 82.6%; bootstrapped from AugReg-L/16-384, 49 tokens, 84.9%.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from eval.encoders.arguments import add_arguments, add_encoder, begin, write_result
from eval.encoders.embeddings import embed_images
from eval.intervals import wilson_interval
from sparse_vlm.command_line import CommandParser
from sparse_vlm.data.images.labels import LabelledImages, read_class_folders
from sparse_vlm.encoder import SparseFormer
from sparse_vlm.encoder.preprocessing import Transform
from sparse_vlm.errors import UserError


def top_1(
    encoder_dir: Path,
    folder: Path,
    batch_size: int = 64,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    """Compute the share of images whose largest logit is their class's.

    Args:
        encoder_dir: directory of a SparseFormer whose head has one output per class.
        folder: images below one folder per class; the folders, sorted by name, are in the order of the head's outputs,
            like ImageNet's, which are named by WordNet id.
        batch_size: images computed together.
        device, dtype: device and dtype to compute in.

    Returns:
        "top1" in [0, 1], "confidence_95" (Wilson's interval), "images", "classes".
    """
    encoder, labels = SparseFormer.from_pretrained(encoder_dir), read_class_folders(folder)
    outputs = encoder.config.cortex.head_dim
    if outputs != len(labels.classes):
        raise UserError(
            f"{encoder_dir} has {outputs} outputs, but {folder} has {len(labels.classes)} classes: the head was "
            "trained for other classes. For a CLIP-like encoder use eval.encoders.clip_benchmark."
        )
    encoder.to(device, dtype)
    images = LabelledImages(labels, Transform(encoder.config.preprocessing))
    logits = embed_images(
        lambda batch: encoder(batch).pooled, images, batch_size=batch_size, device=device, dtype=dtype, name="top-1"
    )
    correct = int((logits.argmax(dim=-1) == labels.values).sum())
    count = len(labels.paths)
    return {
        "top1": correct / count,
        "confidence_95": list(wilson_interval(correct, count)),
        "images": count,
        "classes": len(labels.classes),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, evaluate, and return the exit status."""
    parser = CommandParser.of_module("eval.encoders.imagenet", __doc__)
    add_encoder(parser)
    parser.add_argument("--images", type=Path, required=True, help="folder with a folder of images per class")
    add_arguments(parser)
    return parser.run(_run, argv)


def _run(arguments: argparse.Namespace) -> None:
    device, dtype = begin(arguments, arguments.images)
    result = top_1(arguments.encoder, arguments.images, arguments.batch_size, device=device, dtype=dtype)
    write_result(arguments.output, result, dtype)
    low, high = result["confidence_95"]
    print(f"top-1: {result['top1']:.2%} of {result['images']} images (95%: {low:.2%} – {high:.2%})")


if __name__ == "__main__":
    sys.exit(main())
