"""`sparse-vlm …`: each subcommand's work is a function of the library; here are only its arguments."""

import argparse
import sys
from collections.abc import Sequence

from sparse_vlm.errors import exit_with_sentence


def _convert(arguments: argparse.Namespace) -> None:
    from sparse_vlm.encoder import SparseFormer

    encoder = SparseFormer.from_released(arguments.file, arguments.variant)
    encoder.save_pretrained(arguments.out_dir)
    print(f"{arguments.variant}: {encoder.num_parameters / 1e6:.1f}M parameters written to {arguments.out_dir}")


def _info(arguments: argparse.Namespace) -> None:
    from sparse_vlm.encoder.info import describe

    print(describe(arguments.name))


def build_parser() -> argparse.ArgumentParser:
    """The parser of `sparse-vlm`; every subcommand sets `run`, a function of the parsed arguments."""
    parser = argparse.ArgumentParser(prog="sparse-vlm", description="SparseFormer encoders for multimodal LLMs.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    convert = commands.add_parser("convert", help="the authors' checkpoint file -> an encoder directory")
    convert.add_argument("file", help=".pth or .safetensors, any of the released layouts")
    convert.add_argument("out_dir")
    convert.add_argument("--variant", required=True, help="e.g. sparseformer-clip-l; `sparse-vlm info` lists them")
    convert.set_defaults(run=_convert)

    info = commands.add_parser("info", help="what an encoder variant or directory holds; without a name: all variants")
    info.add_argument("name", nargs="?", help="a variant or an encoder directory")
    info.set_defaults(run=_info)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the `sparse-vlm` command; returns the exit status."""
    arguments = build_parser().parse_args(argv)
    return exit_with_sentence(lambda: arguments.run(arguments))


if __name__ == "__main__":
    sys.exit(main())
