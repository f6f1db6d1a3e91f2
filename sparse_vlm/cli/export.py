"""Export an encoder directory to an ONNX file and check it in ONNX Runtime.

Examples:
    sparse-vlm export encoder encoder.onnx
    sparse-vlm export encoder encoder.onnx --rois_input
"""

import argparse

from sparse_vlm.command_line import CommandParser


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


def run(arguments: argparse.Namespace) -> None:
    """Write the ONNX file and print how much its outputs differ from PyTorch's."""
    from sparse_vlm.encoder import SparseFormer
    from sparse_vlm.encoder.runtime.export import export_onnx
    from sparse_vlm.files import check_output_files

    check_output_files({"the ONNX file": arguments.file}, [arguments.encoder_dir])
    encoder = SparseFormer.from_pretrained(arguments.encoder_dir)
    differences = export_onnx(encoder, arguments.file, int8=arguments.int8, rois_input=arguments.rois_input)
    print(f"{arguments.file}: ONNX Runtime differs from PyTorch by {max(differences.values()):.1e} (relative)")
