"""The options `--device` and `--dtype` of every command that computes. Importing this does not load torch."""

import argparse


def add_device_argument(parser: argparse.ArgumentParser) -> None:
    """Add --device, for `sparse_vlm.devices.choose_device`."""
    parser.add_argument(
        "--device",
        default="auto",
        help="auto (default): the accelerator if there is one, else the CPU; or cpu, cuda, cuda:1, mps, xpu …",
    )


def add_device_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --device and --dtype, for `sparse_vlm.devices.choose_device` and `choose_dtype`."""
    add_device_argument(parser)
    parser.add_argument(
        "--dtype",
        default="auto",
        help="auto (default): bfloat16 on an accelerator that supports it, else float32; or float32, bfloat16, float16",
    )
