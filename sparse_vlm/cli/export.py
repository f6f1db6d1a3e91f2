"""Export an encoder or a model directory to ONNX and check it in ONNX Runtime.

Examples:
    sparse-vlm export encoder encoder.onnx
    sparse-vlm export encoder encoder.onnx --rois_input
    sparse-vlm export encoder encoder.onnx --int8 --images photographs
    sparse-vlm export runs/quickstart/model exported --int8
    sparse-vlm export runs/quickstart/model page --int8 --browser
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from sparse_vlm.command_line import CommandParser
from sparse_vlm.errors import UserError

LIMIT = 256  # images to compare


def add_arguments(parser: CommandParser) -> None:
    """Add the arguments of `run`."""
    parser.add_argument(
        "source",
        help="an encoder directory, from `sparse-vlm convert` or from bootstrapping, or a model directory",
    )
    parser.add_argument("output", help="the ONNX file to write for an encoder, or the folder for a model directory")
    parser.add_argument(
        "--int8",
        action="store_true",
        help="smaller, and faster on a CPU, but less exact: see docs/encoder/speed.md and docs/clients/browser.md",
    )
    encoder = parser.add_argument_group("of an encoder")
    encoder.add_argument(
        "--rois_input",
        action="store_true",
        help="add the input initial_rois: any number of RoIs, anywhere in the image",
    )
    encoder.add_argument(
        "--images",
        nargs="+",
        default=[],
        metavar="PATH",
        help=f"image files or folders on which to compare the embeddings too, at most {LIMIT} evenly spaced ones: what "
        "int8 costs on them (default: noise alone)",
    )
    model = parser.add_argument_group("of a model directory")
    model.add_argument(
        "--visual_tokens",
        type=int,
        help="fix the number of visual tokens per image (default: the model's own, and any other by an input)",
    )
    model.add_argument(
        "--browser",
        action="store_true",
        help="add a page that runs the model in the browser; npm fetches its libraries",
    )
    model.add_argument(
        "--npm_packages", metavar="DIR", help="folder for the npm packages of --browser; those already in it are used"
    )


def run(arguments: argparse.Namespace) -> None:
    """Write the export and print how much its outputs differ from torch's."""
    from sparse_vlm.model_directory import MODEL_TYPE, read_config

    is_model = read_config(arguments.source).get("model_type") == MODEL_TYPE
    others = {
        "--rois_input": is_model and arguments.rois_input,
        "--images": is_model and arguments.images,
        "--visual_tokens": not is_model and arguments.visual_tokens is not None,
        "--browser": not is_model and arguments.browser,
        "--npm_packages": not arguments.browser and arguments.npm_packages is not None,
    }
    for option in (option for option, wrong in others.items() if wrong):
        kind = "a model directory" if is_model else "an encoder directory"
        reason = "is for --browser" if option == "--npm_packages" else f"does not apply to {kind}"
        raise UserError(f"{option} {reason}: leave it out.")
    (_export_model if is_model else _export_encoder)(arguments)


def _export_encoder(arguments: argparse.Namespace) -> None:
    from sparse_vlm.encoder import SparseFormer
    from sparse_vlm.encoder.runtime.export import embedding_cosines, export_onnx
    from sparse_vlm.files import check_output_files
    from sparse_vlm.image_files import open_image

    check_output_files({"the ONNX file": arguments.output}, [arguments.source, *arguments.images])
    if arguments.images and arguments.rois_input:
        raise UserError("--images compares with the checkpoint's own RoIs: leave out --rois_input or --images.")
    encoder = SparseFormer.from_pretrained(arguments.source)
    images = [encoder.transform(open_image(file)) for file in _files(arguments.images)]
    differences = export_onnx(encoder, arguments.output, int8=arguments.int8, rois_input=arguments.rois_input)
    print(
        f"{arguments.output}: ONNX Runtime differs from PyTorch by {max(differences.values()):.1e} (relative, on noise)"
    )
    if images:
        cosines = embedding_cosines(encoder, arguments.output, images)
        print(
            f"{len(images)} images: the cosine of the embeddings with PyTorch's is {cosines.mean():.5f} on average, "
            f"{cosines.min():.5f} at least"
        )


def _export_model(arguments: argparse.Namespace) -> None:
    from sparse_vlm.files import check_output
    from sparse_vlm.vlm.export.folder import export_vlm
    from sparse_vlm.vlm.export.page import fetch_packages

    check_output(arguments.output, arguments.source)
    with tempfile.TemporaryDirectory() as temporary:
        packages = Path(arguments.npm_packages or temporary) if arguments.browser else None
        if packages is not None:
            fetch_packages(packages)
        differences = export_vlm(
            arguments.source,
            arguments.output,
            int8=arguments.int8,
            visual_tokens=arguments.visual_tokens,
            packages=packages,
        )
    parts = ", ".join(f"{name} by {difference:.1e}" for name, difference in differences.items())
    print(f"{arguments.output}: ONNX Runtime differs from PyTorch in {parts} (relative, on noise)")
    if arguments.browser:
        print(f"Serve the page with: python -m http.server --directory {arguments.output}")


def _files(paths: Sequence[str]) -> list[Path]:
    """The image files that `paths` name or contain, at most `LIMIT`, evenly spaced."""
    from sparse_vlm.data.images.files import image_paths

    files = [file for path in map(Path, paths) for file in (image_paths(path) if path.is_dir() else [path])]
    step = max(1, -(-len(files) // LIMIT))
    return files[::step]
