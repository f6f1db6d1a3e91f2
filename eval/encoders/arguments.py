"""Options that all evaluations of encoders share."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from eval.encoders.probing.representations import ImageSets
from sparse_vlm.command_line import add_device_arguments
from sparse_vlm.devices import choose_device, choose_dtype
from sparse_vlm.dtypes import name_of
from sparse_vlm.files import check_output_files, write_json
from sparse_vlm.measure.timing import require_positive


def add_encoder(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Add --encoder."""
    parser.add_argument("--encoder", type=Path, required=required, help="directory of a SparseFormer")


def add_teacher(parser: argparse.ArgumentParser, specification: str, required: bool = True) -> None:
    """Add --teacher; `specification` says which ones are accepted."""
    parser.add_argument("--teacher", required=required, help=f"the encoder's teacher: {specification}")


def add_teacher_options(parser: argparse.ArgumentParser) -> None:
    """Add --image_size and --teacher_layer, as for train.bootstrap."""
    parser.add_argument("--image_size", type=int, help="input size of the teacher in pixels (default: its own)")
    parser.add_argument(
        "--teacher_layer",
        type=int,
        help="block of the teacher whose tokens are its representation, from 0, or -1 for the last (default: the last)",
    )


def add_labelled_images(parser: argparse.ArgumentParser) -> None:
    """Add --train_images, --test_images, --train_samples and --test_samples."""
    images = "labelled images: a folder per class, or wds:SHARDS with CLASS/NAME.jpg"
    parser.add_argument("--train_images", required=True, help=images)
    parser.add_argument("--test_images", required=True, help="held-out images, as --train_images")
    parser.add_argument("--train_samples", type=int, help="training images to use, evenly spaced (default: all)")
    parser.add_argument("--test_samples", type=int, help="test images to use, evenly spaced (default: all)")


def labelled_images(arguments: argparse.Namespace) -> ImageSets:
    """Check the options of `add_labelled_images`."""
    numbers = {name: getattr(arguments, name) for name in ("train_samples", "test_samples")}
    require_positive(**{name: number for name, number in numbers.items() if number is not None})
    return ImageSets(arguments.train_images, arguments.test_images, **numbers)


def add_tokens(parser: argparse.ArgumentParser) -> None:
    """Add --tokens, the numbers of latent tokens at which an encoder is evaluated besides its own."""
    parser.add_argument("--tokens", help="further numbers of latent tokens of the encoder, e.g. 4-9 or 4,9,16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --batch_size, --device, --dtype and --output."""
    parser.add_argument("--batch_size", type=int, default=64, help="images computed together (default: 64)")
    add_device_arguments(parser)
    parser.add_argument("--output", type=Path, help="JSON file to write")


def begin(arguments: argparse.Namespace, *inputs: str | Path | None) -> tuple[torch.device, torch.dtype]:
    """Check the options of `add_arguments`, and choose device and dtype.

    Args:
        arguments: the parsed command line.
        inputs: files and folders that the output must not replace, beside --encoder; None is ignored.
    """
    check_output_files({"--output": arguments.output}, [arguments.encoder, *inputs])
    require_positive(batch_size=arguments.batch_size)
    device = choose_device(arguments.device)
    return device, choose_dtype(arguments.dtype, device)


def write_result(output: Path | None, result: Mapping[str, Any], dtype: torch.dtype) -> None:
    """Write the result of an evaluation to --output, if it is given, with the dtype in which it was computed."""
    if output is not None:
        write_json(output, {**result, "dtype": name_of(dtype)})
