"""Options that all commands of this folder share."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from eval.cost.report import check_report
from eval.cost.runtimes import Setting
from sparse_vlm.command_line import add_device_arguments
from sparse_vlm.devices import choose_device, choose_dtype
from sparse_vlm.dtypes import name_of
from sparse_vlm.measure.timing import require_positive

TOWERS_HELP = (
    "vision towers, e.g. sparseformer-clip-l@336, an encoder directory, or timm:vit_large_patch14_clip_quickgelu_224"
)


def add_arguments(parser: argparse.ArgumentParser, output: str) -> None:
    """Add --threads, --device, --dtype and --output to a command that measures in one setting."""
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    add_device_arguments(parser)
    add_output(parser, output)


def add_output(parser: argparse.ArgumentParser, output: str) -> None:
    """Add --output with this default."""
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(output),
        help=f"JSON file; tables and figure go beside it (default: {output})",
    )


def add_repeats(parser: argparse.ArgumentParser, repeats: int) -> None:
    """Add --repeats with this default."""
    parser.add_argument(
        "--repeats", type=int, default=repeats, help=f"recorded runs of each model (default: {repeats})"
    )


def add_tokens(parser: argparse.ArgumentParser) -> None:
    """Add --tokens, the numbers of latent tokens of SparseFormers."""
    parser.add_argument(
        "--tokens",
        metavar="COUNTS",
        help="numbers of latent tokens of every SparseFormer, e.g. 4,9,16 (default: its own); dense ViTs keep theirs",
    )


def begin(
    arguments: argparse.Namespace, batch: int, mode: str = "eager", inputs: Sequence[str | Path] = ()
) -> tuple[torch.device, Setting]:
    """Check the options of `add_arguments` and set the number of threads.

    Args:
        arguments: the parsed command line.
        batch: samples that are computed together.
        mode: see `Setting`.
        inputs: names or paths of what is measured; the output must not replace one of them.
    """
    check_report(arguments.output, inputs)
    require_positive(threads=arguments.threads)
    device = choose_device(arguments.device)
    dtype = choose_dtype(arguments.dtype, device)
    torch.set_num_threads(arguments.threads)
    return device, Setting(arguments.threads, batch, name_of(dtype), mode)
