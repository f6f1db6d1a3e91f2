"""Top-1 accuracy of an encoder with a classification head.

    python -m eval.encoders.imagenet --encoder DIR --images VAL_FOLDER

For SparseFormers of ImageNet (v1, or bootstrapped from a classifier) and after `train.finetune`. A CLIP-like encoder
has an embedding there: `eval.encoders.clip_benchmark` has its zero-shot accuracy. Published, ImageNet-1k: v1 tiny /
small / base 81.0 / 82.0 / 82.6%; bootstrapped from AugReg-L/16-384, 49 tokens, 84.9%.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from eval.encoders.embeddings import embed_images
from eval.intervals import wilson_interval
from sparse_vlm.data.images.labels import LabelledImages, read_class_folders
from sparse_vlm.device_arguments import add_device_arguments
from sparse_vlm.devices import choose_device, choose_dtype
from sparse_vlm.encoder import SparseFormer
from sparse_vlm.encoder.preprocessing import Transform
from sparse_vlm.errors import UserError, exit_with_sentence
from sparse_vlm.files import check_output_files, write_json


def top_1(
    encoder_dir: Path,
    folder: Path,
    batch_size: int = 64,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    """Share of pictures whose largest logit is their class's.

    Args:
        encoder_dir: of `SparseFormer.save_pretrained`, with a head of as many outputs as there are classes.
        folder: pictures below one folder per class, in the order of the head's outputs when sorted by name, as
            ImageNet's by WordNet id are.
        batch_size: pictures at a time.
        device, dtype: where to compute, and in which type.

    Returns:
        "top1" in [0, 1], "confidence_95" (Wilson's interval), "images", "classes".

    Raises:
        UserError: the head has another number of outputs, or something cannot be opened.
    """
    encoder, labels = SparseFormer.from_pretrained(encoder_dir), read_class_folders(folder)
    outputs = encoder.config.cortex.head_dim
    if outputs != len(labels.classes):
        raise UserError(
            f"{encoder_dir} has {outputs} outputs, but {folder} has {len(labels.classes)} classes: this head is not "
            "for these classes. Zero-shot accuracy of a CLIP-like encoder is eval.encoders.clip_benchmark's."
        )
    encoder.to(device, dtype)
    images = LabelledImages(labels, Transform(encoder.config.preprocessing))
    logits = embed_images(
        lambda batch: encoder(batch).pooled, images, batch_size=batch_size, device=device, dtype=dtype, name="top-1"
    )
    right = int((logits.argmax(dim=-1) == labels.values).sum())
    count = len(labels.paths)
    return {
        "top1": right / count,
        "confidence_95": list(wilson_interval(right, count)),
        "images": count,
        "classes": len(labels.classes),
    }


def build_parser() -> argparse.ArgumentParser:
    """The arguments of `python -m eval.encoders.imagenet`."""
    parser = argparse.ArgumentParser(
        prog="python -m eval.encoders.imagenet", description="Top-1 accuracy of an encoder's head."
    )
    parser.add_argument("--encoder", type=Path, required=True, help="SparseFormer directory")
    parser.add_argument(
        "--images", type=Path, required=True, help="a folder of pictures per class, e.g. ImageNet's val"
    )
    parser.add_argument("--batch-size", type=int, default=64)
    add_device_arguments(parser)
    parser.add_argument("--output", type=Path, help="JSON file to write")
    return parser


def _run(arguments: argparse.Namespace) -> None:
    check_output_files({"--output": arguments.output}, [arguments.encoder, arguments.images])
    device = choose_device(arguments.device)
    dtype = choose_dtype(arguments.dtype, device)
    result = top_1(arguments.encoder, arguments.images, arguments.batch_size, device=device, dtype=dtype)
    if arguments.output is not None:
        write_json(arguments.output, result)
    low, high = result["confidence_95"]
    print(f"top-1: {result['top1']:.2%} of {result['images']} images (95%: {low:.2%} – {high:.2%})")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    arguments = build_parser().parse_args(argv)
    return exit_with_sentence(lambda: _run(arguments))


if __name__ == "__main__":
    sys.exit(main())
