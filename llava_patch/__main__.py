"""Run a module of LLaVA as a script, with SparseFormer towers: `python -m llava_patch [--cpu] MODULE ARGS…`.

It also works with a launcher:

    deepspeed --module llava_patch llava.train.train_mem ARGS…
    torchrun -m llava_patch llava.train.train ARGS…
"""

import runpy
import sys
from collections.abc import Sequence
from importlib.util import find_spec

import llava_patch
from sparse_vlm.errors import UserError, exit_with_sentence

USAGE = "python -m llava_patch [--cpu] MODULE ARGS…, e.g. python -m llava_patch llava.train.train --vision_tower …"


def split_arguments(arguments: Sequence[str]) -> tuple[bool, str, list[str]]:
    """Split the command line into --cpu (True if given), MODULE and its arguments.

    deepspeed inserts --local_rank=N before MODULE; it is passed on to MODULE.
    """
    place = next((i for i, argument in enumerate(arguments) if not argument.startswith("-")), None)
    if place is None:
        raise UserError(f"MODULE is missing. Usage: {USAGE}")
    before, module, after = arguments[:place], arguments[place], arguments[place + 1 :]
    return "--cpu" in before, module, [argument for argument in before if argument != "--cpu"] + list(after)


def run(arguments: Sequence[str]) -> None:
    """Run MODULE as `__main__` after patching LLaVA."""
    cpu, module, rest = split_arguments(arguments)
    if find_spec("llava") is None:
        raise UserError("LLaVA is not installed: pip install --no-deps llava-torch==1.2.2.post1")
    llava_patch.install()
    if cpu:
        from llava_patch.cpu import cuda_is_cpu

        cuda_is_cpu()
    sys.argv = [module, *rest]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    sys.exit(exit_with_sentence(lambda: run(sys.argv[1:])))
