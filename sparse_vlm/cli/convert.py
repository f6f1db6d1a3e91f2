"""Convert the authors' checkpoint file to an encoder directory.

Examples:
    sparse-vlm convert FILE.pth encoder --variant sparseformer-clip-l
"""

import argparse

from sparse_vlm.command_line import CommandParser


def add_arguments(parser: CommandParser) -> None:
    """Add the arguments of `run`."""
    parser.add_argument("file", help="a .pth or .safetensors file in any of the released layouts")
    parser.add_argument("out_dir", help="the encoder directory to write")
    parser.add_argument("--variant", required=True, help="e.g. sparseformer-clip-l; `sparse-vlm info` lists them")


def run(arguments: argparse.Namespace) -> None:
    """Write the encoder directory."""
    from sparse_vlm.encoder import SparseFormer
    from sparse_vlm.files import check_output

    check_output(arguments.out_dir, arguments.file)
    encoder = SparseFormer.from_released(arguments.file, arguments.variant)
    encoder.save_pretrained(arguments.out_dir)
    print(f"{arguments.variant}: {encoder.num_parameters / 1e6:.1f}M parameters written to {arguments.out_dir}")
