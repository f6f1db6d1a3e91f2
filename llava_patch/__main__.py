"""Run a module of LLaVA as a script, with SparseFormer towers: `python -m llava_patch [--cpu] MODULE ARGS…`.

A launcher works as well:

    python -m llava_patch llava.train.train --vision_tower sparseformer-clip-l …
    deepspeed --module llava_patch llava.train.train_mem ARGS…
    torchrun -m llava_patch llava.train.train ARGS…
"""

import argparse
import runpy
import sys
from collections.abc import Sequence
from importlib.util import find_spec

import llava_patch
from sparse_vlm.command_line import CommandParser, unknown_option
from sparse_vlm.errors import UserError, exit_with_sentence

USAGE = "python -m llava_patch [--cpu] MODULE ARGS…, e.g. python -m llava_patch llava.train.train --vision_tower …"


def split_arguments(arguments: Sequence[str]) -> tuple[bool, str, list[str]]:
    """Split the command line into --cpu (True if given), MODULE and its arguments.

    deepspeed inserts --local_rank=N before MODULE; it is passed on to MODULE.

    Raises:
        UserError: MODULE is missing, or another option precedes it.
    """
    place = next((i for i, argument in enumerate(arguments) if not argument.startswith("-")), None)
    for option in arguments[:place]:
        if option != "--cpu" and not option.startswith(("--local_rank=", "--local-rank=")):
            raise unknown_option(option, ["--cpu", "--help"], "python -m llava_patch")
    if place is None:
        raise UserError(f"MODULE is missing. Usage: {USAGE}")
    before, module, after = arguments[:place], arguments[place], arguments[place + 1 :]
    return "--cpu" in before, module, [argument for argument in before if argument != "--cpu"] + list(after)


def check_module(name: str) -> None:
    """Check that `python -m NAME` would find something to run. This imports the packages that hold the module.

    Raises:
        UserError: the module does not exist, or is a package without `__main__`.
    """
    try:
        spec = find_spec(name)
        runs = spec is not None and (spec.submodule_search_locations is None or find_spec(f"{name}.__main__"))
    except ImportError as error:
        if error.name is not None and not f"{name}.".startswith(f"{error.name}."):
            raise  # a package is there, but not what it imports
        spec, runs = None, None
    if not runs:
        reason = "There is no module" if spec is None else "A package cannot be run:"
        raise UserError(f"{reason} {name}. Give a module of LLaVA, such as llava.train.train.")


def run(arguments: Sequence[str]) -> None:
    """Run MODULE as `__main__` after patching LLaVA."""
    cpu, module, rest = split_arguments(arguments)
    if find_spec("llava") is None:
        raise UserError("LLaVA is not installed: pip install --no-deps llava-torch==1.2.2.post1")
    llava_patch.install()
    if cpu:
        from llava_patch.cpu import cuda_is_cpu

        cuda_is_cpu()
    check_module(module)
    sys.argv = [module, *rest]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] in (["-h"], ["--help"]):  # after MODULE, they belong to MODULE
        parser = CommandParser.of_module("llava_patch", __doc__)
        parser.add_argument("--cpu", action="store_true", help="run LLaVA's CUDA calls on the CPU")
        parser.add_argument("module", metavar="MODULE", help="a module of LLaVA, such as llava.train.train")
        parser.add_argument("arguments", metavar="ARGS", nargs=argparse.REMAINDER, help="the module's own arguments")
        parser.parse_args(words[:1])
    return exit_with_sentence(lambda: run(words))


if __name__ == "__main__":
    sys.exit(main())
