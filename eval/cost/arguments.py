"""Arguments that every measurement of cost in one setting has."""

import argparse
from pathlib import Path

import torch

from eval.cost.report import require_json_name
from sparse_vlm.device_arguments import add_device_arguments
from sparse_vlm.devices import choose_device, choose_dtype
from sparse_vlm.dtypes import name_of
from sparse_vlm.measure.timing import require_positive


def add_arguments(parser: argparse.ArgumentParser, repeats: int, output: str) -> None:
    """Adds --threads, --device, --dtype, --repeats and --output with these defaults."""
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    add_device_arguments(parser)
    parser.add_argument("--repeats", type=int, default=repeats, help="recorded runs of each model")
    parser.add_argument("--output", type=Path, default=Path(output), help="the .json file; .md and .png lie beside it")


def begin(arguments: argparse.Namespace) -> tuple[torch.device, str]:
    """Checks them and sets the threads: the device, and the dtype's name, a key of `DTYPES`.

    Raises:
        UserError: a value is out of range, there is no such device or dtype.
    """
    require_json_name(arguments.output)
    require_positive(threads=arguments.threads, repeats=arguments.repeats)
    device = choose_device(arguments.device)
    dtype = choose_dtype(arguments.dtype, device)
    torch.set_num_threads(arguments.threads)
    return device, name_of(dtype)
