"""The quickstart: from two packages to a working vision-language model with a bootstrapped SparseFormer inside.

    make quickstart              # or: python -m train.quickstart
    QUICKSTART_FAST=1 …          # a smoke version that trains next to nothing
    make quickstart-compare      # also trains the same LLM on the dense teacher's 64 tokens

Every step is one of the project's own commands, printed before it runs. A step whose result exists is skipped, and a
step that was killed goes on from its last checkpoint, so running it again is all there is to resuming.
Result: runs/quickstart/report.md, report.json, and the model directory runs/quickstart/model.
"""

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from sparse_vlm.errors import UserError, exit_with_sentence
from train.forked import fork_python
from train.quickstart.paths import Paths
from train.quickstart.report import SECONDS_FILE, write_report
from train.quickstart.steps import FAST, FULL, Step, all_steps


def run_step(step: Step, paths: Paths, console: Console) -> None:
    """Runs a step unless its result exists, and notes its seconds.

    Raises:
        UserError: the command failed; its own message stands above.
    """
    if step.result.exists():
        console.print(f"[green]done before[/] {step.title}")
        return
    console.rule(step.title, align="left")
    console.print(f"$ {shlex.join(['python', *step.arguments])}", style="dim", soft_wrap=True)
    resumed = step.working_directory is not None and step.working_directory.exists()
    start = time.monotonic()
    process = fork_python(step.arguments)
    process.join()
    if process.exitcode:
        raise UserError(
            f"The step '{step.title}' failed with exit status {process.exitcode}. Run again to go on from here."
        )
    seconds = round(time.monotonic() - start, 1)
    with (paths.root / SECONDS_FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": step.name, "seconds": seconds, "resumed": resumed}) + "\n")


def quickstart(root: Path, compare: bool, fast: bool) -> None:
    """Runs all steps and writes the report.

    Args:
        root: folder of all results.
        compare: also train and evaluate the LLM on the dense teacher's tokens.
        fast: the smoke version.
    """
    console = Console()
    paths = Paths(root)
    root.mkdir(parents=True, exist_ok=True)
    steps = all_steps(paths, FAST if fast else FULL, compare)
    for step in steps:
        run_step(step, paths, console)
    report = write_report(paths, steps)
    console.rule("The quickstart is done", align="left")
    console.print(
        f"accuracy {report['accuracy']:.2%} with {report['visual_tokens']} visual tokens; see {root}/report.md"
    )
    image = paths.test_images / "0.png"
    console.print("Chat with the model:", style="bold")
    console.print(
        f'  .venv/bin/sparse-vlm chat --model {paths.model} --image {image} "what color is the shape?"', soft_wrap=True
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, help="default: runs/quickstart, or runs/quickstart-fast")
    parser.add_argument("--compare", action="store_true", help="also the same LLM on the dense teacher's tokens")
    arguments = parser.parse_args(argv)
    fast = os.environ.get("QUICKSTART_FAST", "") not in ("", "0")
    root = arguments.output_dir or Path("runs") / ("quickstart-fast" if fast else "quickstart")
    return exit_with_sentence(lambda: quickstart(root, arguments.compare, fast))


if __name__ == "__main__":
    sys.exit(main())
