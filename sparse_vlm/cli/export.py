"""Export an encoder directory to an ONNX file and check it in ONNX Runtime.

Examples:
    sparse-vlm export encoder encoder.onnx
    sparse-vlm export encoder encoder.onnx --rois_input
    sparse-vlm export encoder encoder.onnx --int8 --images photographs
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from sparse_vlm.command_line import CommandParser
from sparse_vlm.errors import UserError

LIMIT = 256  # images to compare


def add_arguments(parser: CommandParser) -> None:
    """Add the arguments of `run`."""
    parser.add_argument("encoder_dir", help="an encoder directory, from `sparse-vlm convert` or from bootstrapping")
    parser.add_argument("file", help="the ONNX file to write")
    parser.add_argument(
        "--int8", action="store_true", help="faster and smaller, but less exact: see docs/encoder/speed.md"
    )
    parser.add_argument(
        "--rois_input",
        action="store_true",
        help="add the input initial_rois: any number of RoIs, anywhere in the image",
    )
    parser.add_argument(
        "--images",
        nargs="+",
        default=[],
        metavar="PATH",
        help=f"image files or folders on which to compare the embeddings too, at most {LIMIT} evenly spaced ones: what "
        "int8 costs on them (default: noise alone)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Write the ONNX file and print how much its outputs differ from PyTorch's."""
    from sparse_vlm.encoder import SparseFormer
    from sparse_vlm.encoder.runtime.export import embedding_cosines, export_onnx
    from sparse_vlm.files import check_output_files
    from sparse_vlm.image_files import open_image

    check_output_files({"the ONNX file": arguments.file}, [arguments.encoder_dir, *arguments.images])
    if arguments.images and arguments.rois_input:
        raise UserError("--images compares with the checkpoint's own RoIs: leave out --rois_input or --images.")
    encoder = SparseFormer.from_pretrained(arguments.encoder_dir)
    images = [encoder.transform(open_image(file)) for file in _files(arguments.images)]
    differences = export_onnx(encoder, arguments.file, int8=arguments.int8, rois_input=arguments.rois_input)
    print(
        f"{arguments.file}: ONNX Runtime differs from PyTorch by {max(differences.values()):.1e} (relative, on noise)"
    )
    if images:
        cosines = embedding_cosines(encoder, arguments.file, images)
        print(
            f"{len(images)} images: the cosine of the embeddings with PyTorch's is {cosines.mean():.5f} on average, "
            f"{cosines.min():.5f} at least"
        )


def _files(paths: Sequence[str]) -> list[Path]:
    """The image files that `paths` name or contain, at most `LIMIT`, evenly spaced."""
    from sparse_vlm.data.images.files import image_paths

    files = [file for path in map(Path, paths) for file in (image_paths(path) if path.is_dir() else [path])]
    step = max(1, -(-len(files) // LIMIT))
    return files[::step]
