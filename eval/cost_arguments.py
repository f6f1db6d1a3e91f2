"""Arguments that every measurement of cost in one setting has."""

import argparse
from pathlib import Path

import torch

from eval.cost_report import require_json_name
from eval.timing import open_device, require_positive
from sparse_vlm.dtypes import DTYPES


def add_arguments(parser: argparse.ArgumentParser, repeats: int, output: str) -> None:
    """Adds --threads, --dtype, --device, --repeats and --output with these defaults."""
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--dtype", default="float32", choices=list(DTYPES), help="of weights and activations")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--repeats", type=int, default=repeats, help="recorded runs of each model")
    parser.add_argument("--output", type=Path, default=Path(output), help="the .json file; .md and .png lie beside it")


def begin(arguments: argparse.Namespace) -> torch.device:
    """Checks them, sets the threads, and opens the device.

    Raises:
        UserError: a value is out of range, or the device is not there.
    """
    require_json_name(arguments.output)
    require_positive(threads=arguments.threads, repeats=arguments.repeats)
    device = open_device(arguments.device)
    torch.set_num_threads(arguments.threads)
    return device
