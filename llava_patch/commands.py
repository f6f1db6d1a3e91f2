"""Use SparseFormer vision towers in the commands of haotian-liu/LLaVA.

Examples:
    sparse-vlm llava enable
    sparse-vlm llava status
    sparse-vlm llava disable
"""

import argparse

from llava_patch import startup
from sparse_vlm.command_line import Commands, describe


def add_commands(commands: Commands) -> None:
    """Add `llava` to the parser of `sparse-vlm`."""
    description, examples = describe(__doc__)
    llava = commands.add_parser("llava", help=description.rstrip("."), description=description, examples=examples)
    actions = llava.add_subparsers(required=True, metavar="ACTION")
    for name, run, text in (
        ("enable", _enable, "Make LLaVA's commands in this Python accept --vision_tower sparseformer-…"),
        ("disable", _disable, "Undo `enable`"),
        ("status", _status, "Print which LLaVA is imported in this folder, the versions, and the patches in effect"),
    ):
        action = actions.add_parser(name, help=text, description=f"{text}.", examples=f"  sparse-vlm llava {name}")
        action.set_defaults(run=run)


def _enable(arguments: argparse.Namespace) -> None:
    print(f"Enabled: {startup.enable()}")
    print(f"To switch it off, set {startup.OFF_SWITCH}=0 for one run, or run sparse-vlm llava disable.")


def _disable(arguments: argparse.Namespace) -> None:
    print("Disabled." if startup.disable() else "It was not enabled.")


def _status(arguments: argparse.Namespace) -> None:
    from llava_patch import status

    print(status.describe())
