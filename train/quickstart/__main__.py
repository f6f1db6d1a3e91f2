"""Train a working vision-language model with a bootstrapped SparseFormer, offline, from two PyPI packages.

    python -m train.quickstart                      # or: make quickstart
    python -m train.quickstart --compare            # also train the same LLM on the dense teacher's 64 tokens
    python -m train.quickstart --seed 1 --output_dir runs/quickstart-1
    QUICKSTART_FAST=1 python -m train.quickstart    # a smoke test that hardly trains

Every step is one of the project's own commands; its command and output are in runs/quickstart/logs/STEP.log. Run it
again to resume: steps whose results exist are skipped, and an interrupted training step resumes from its last
checkpoint.
Result: runs/quickstart/report.md, report.json, and the model directory runs/quickstart/model.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from sparse_vlm.command_line import CommandParser
from sparse_vlm.errors import UserError
from sparse_vlm.files import read_object
from train.forked import run_logged
from train.pipeline import LOGS, require_same_arguments, run_steps
from train.quickstart.paths import Paths
from train.quickstart.steps import FAST, FULL, all_steps


def quickstart(root: Path, compare: bool, fast: bool, seed: int) -> None:
    """Run all steps and write the report.

    Args:
        root: directory for all results.
        compare: also train and evaluate the LLM on the dense teacher's tokens.
        fast: run the smoke test.
        seed: seed of the data and of every training stage.

    Raises:
        UserError: a step failed, or `root` holds a run with another seed.
    """
    console = Console()
    paths = Paths(root)
    require_same_arguments(root, {"seed": seed})
    steps = all_steps(paths, replace(FAST if fast else FULL, seed=seed), compare)
    run_steps(steps, root, console)
    report = _report(root, compare, fast)
    console.rule("The quickstart is done", align="left")
    console.print(
        f"accuracy {report['accuracy']:.2%} with {report['visual_tokens']} visual tokens; see {root}/report.md"
    )
    image = paths.test_images / "0.png"
    console.print("Chat with the model:", style="bold")
    console.print(
        f'  .venv/bin/sparse-vlm chat --model {paths.model} --image {image} "what color is the shape?"', soft_wrap=True
    )


def _report(root: Path, compare: bool, fast: bool) -> dict[str, Any]:
    """Let another process, which has imported torch and transformers already, write the report, and read it."""
    flags = [flag for flag, given in (("--compare", compare), ("--fast", fast)) if given]
    if run_logged(["-m", "train.quickstart.report", "--output_dir", str(root), *flags], root / LOGS / "report.log"):
        raise UserError("All steps are done, but the report failed. Run it again to write the report.")
    return read_object(root / "report.json")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status."""
    fast = os.environ.get("QUICKSTART_FAST", "") not in ("", "0")
    default = Path("runs") / ("quickstart-fast" if fast else "quickstart")
    parser = CommandParser.of_module("train.quickstart", __doc__)
    parser.add_argument(
        "--output_dir", type=Path, default=default, help="directory for all results (default: %(default)s)"
    )
    parser.add_argument("--compare", action="store_true", help="also train the same LLM on the dense teacher's tokens")
    parser.add_argument("--seed", type=int, default=FULL.seed, help="seed of all steps (default: %(default)s)")
    return parser.run(lambda arguments: quickstart(arguments.output_dir, arguments.compare, fast, arguments.seed), argv)


if __name__ == "__main__":
    sys.exit(main())
