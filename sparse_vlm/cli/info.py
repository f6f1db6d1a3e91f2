"""Describe a variant, an encoder directory or a model directory; without a name, list all variants.

Examples:
    sparse-vlm info
    sparse-vlm info sparseformer-clip-l
    sparse-vlm info runs/quickstart/model
"""

import argparse

from sparse_vlm.command_line import CommandParser


def add_arguments(parser: CommandParser) -> None:
    """Add the arguments of `run`."""
    parser.add_argument("name", nargs="?", help="a variant or a directory")


def run(arguments: argparse.Namespace) -> None:
    """Print the description."""
    from sparse_vlm.info import describe

    print(describe(arguments.name))
