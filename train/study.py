"""Run bootstraps that differ in one setting each, on the same teacher and images, and write a table and figures.

    python -m train.study train/configs/studies/easy_vqa.yaml --output_dir runs/study \\
        --teacher runs/quickstart/teacher --data_path IMAGES --eval_data_path HELD_OUT_IMAGES

A study file (YAML) holds `arguments` of `train.bootstrap` that all runs share, and `groups` of variants, each with
the arguments that it changes. `base` names a file of further arguments, relative to the study. Variants with equal
arguments run once. `measure` is an optional command (a module and its arguments) to run after each bootstrap; it writes
a JSON file to `--output`, whose fractions go into the table and the figures, or, with `columns`, the numbers that these
name (column: path of keys, joined by dots). `curve` chooses one of `CURVES` to plot against steps.

Result: a folder per run, with the output of its commands (bootstrap.log, measured.log), study.json, study.md, and a
figure per group. Running it again resumes it.
"""

import json
import logging
import re
import sys
import textwrap
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from matplotlib.figure import Figure

from sparse_vlm.command_line import CommandParser
from sparse_vlm.errors import UserError, unknown_choice
from sparse_vlm.figures import save_figure
from sparse_vlm.files import write_json, write_text
from train.forked import run_logged
from train.pipeline import require_same_arguments
from train.stages.command_line import read_recipe
from train.stages.log import LOG_NAME, read_log
from train.vision.bootstrap_arguments import ARGUMENTS

logger = logging.getLogger(__name__)
Arguments = dict[str, Any]
CURVES = {  # of log.jsonl
    "eval_cosine": "cosine with the teacher, held out",
    "eval_centered_cosine": "centred cosine with the teacher, held out",
}


@dataclass(frozen=True)
class Study:
    """The content of a study file.

    Attributes:
        title: heading of the table.
        groups: group -> variant -> the arguments that it changes.
        arguments: arguments of all runs.
        measure: command to run after each bootstrap, with {run} for its folder and {NAME} for an argument; may be
            empty.
        columns: column -> path of a number in what `measure` writes, e.g. "encoders.student.accuracy"; if there are
            none, all fractions on top.
        curve: a key of `CURVES`.
    """

    title: str
    groups: Mapping[str, Mapping[str, Arguments]]
    arguments: Arguments = field(default_factory=dict)
    measure: Sequence[str] = ()
    columns: Mapping[str, str] = field(default_factory=dict)
    curve: str = "eval_cosine"


@dataclass(frozen=True)
class Run:
    """One variant of a group, and the folder of its results. Variants with equal arguments share a folder."""

    group: str
    variant: str
    arguments: Arguments
    folder: Path


def read_study(file: Path) -> Study:
    """Read a study file.

    Raises:
        UserError: the file is missing, is not YAML, or does not fit `Study`.
    """
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
        if isinstance(values, dict) and "base" in values:
            shared = read_recipe(file.parent / str(values.pop("base")), ARGUMENTS, "python -m train.bootstrap")
            values["arguments"] = shared | values.get("arguments", {})
        study = Study(**values)
        if not isinstance(study.groups, dict) or not all(isinstance(v, dict) and v for v in study.groups.values()):
            raise TypeError("its groups do not map groups to variants to arguments")
        if not study.groups:
            raise TypeError("it has no groups of variants")
        if study.curve not in CURVES:
            raise unknown_choice("curve", study.curve, tuple(CURVES))
    except OSError as error:
        raise UserError(f"Cannot read the study {file}: {error.strerror}.") from None
    except (yaml.YAMLError, TypeError) as error:
        raise UserError(
            f"{file} is not a study ({error}). It holds title, groups, and optionally base, arguments, measure, "
            "columns, curve."
        ) from None
    return study


def runs_of(study: Study, common: Arguments, output_dir: Path) -> list[Run]:
    """List the runs in order.

    Args:
        study: the study.
        common: arguments of all runs from the command line, such as paths.
        output_dir: parent of the runs' folders.

    Raises:
        UserError: the names of two variants map to the same folder.
    """
    folders: dict[str, Path] = {}
    runs = []
    for group, variants in study.groups.items():
        for variant, changes in variants.items():
            arguments = {**study.arguments, **common, **changes}
            key = json.dumps(arguments, sort_keys=True)
            name = re.sub(r"[^\w.-]", "_", f"{group}-{variant}")
            if key not in folders and output_dir / name in folders.values():
                raise UserError(
                    f"Two variants would share the folder {name}: choose names that differ in letters or digits."
                )
            runs.append(Run(group, str(variant), arguments, folders.setdefault(key, output_dir / name)))
    return runs


def run(todo: Run, measure: Sequence[str]) -> None:
    """Bootstrap and measure, unless the results exist.

    Raises:
        UserError: a command failed (its own message comes before), or the folder belongs to a run with other arguments.
    """
    require_same_arguments(todo.folder, todo.arguments)
    words = [word for name, value in todo.arguments.items() for word in (f"--{name}", str(value))]
    if not (todo.folder / "config.json").exists():
        _call(["train.bootstrap", *words, "--output_dir", str(todo.folder)], todo.folder / "bootstrap.log")
    if measure and not (todo.folder / "measured.json").exists():
        places = {"run": todo.folder, **todo.arguments}
        command = [word.format(**places) for word in measure] + ["--output", str(todo.folder / "measured.json")]
        _call(command, todo.folder / "measured.log")


def _call(command: Sequence[str], log: Path) -> None:
    logger.info("$ python -m %s", " ".join(command))
    if status := run_logged(["-m", *command], log):
        raise UserError(f"{command[0]} failed with exit status {status}. Run the study again to resume it.")


def chosen(measured: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, float]:
    """Pick the numbers of `Study.columns` from what a measurement wrote.

    Raises:
        UserError: a path leads to no number.
    """
    if not columns:
        return {name: value for name, value in measured.items() if isinstance(value, float)}
    numbers = {}
    for column, path in columns.items():
        value: Any = measured
        for key in path.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if not isinstance(value, int | float):
            raise UserError(f"The study's column {column!r} is {path}, but the measurement wrote no number there.")
        numbers[column] = float(value)
    return numbers


def result(done: Run, name: str, columns: Mapping[str, str]) -> dict[str, Any]:
    """Collect the results of a finished run: final cosines, the named curve against steps, further measurements."""
    alignment = json.loads((done.folder / "alignment.json").read_text(encoding="utf-8"))
    lines = read_log(done.folder / LOG_NAME)
    curve = [(line["step"], line[name]) for line in lines if name in line]
    measured = done.folder / "measured.json"
    numbers = json.loads(measured.read_text(encoding="utf-8")) if measured.exists() else {}
    return {
        "group": done.group,
        "variant": done.variant,
        "arguments": done.arguments,
        "curve": curve,
        "final": {"cosine": alignment["alignment_cosine"], "centered_cosine": alignment["centered_cosine"]}
        | (chosen(numbers, columns) if numbers else {}),
        "seconds": lines[-1]["seconds"],
    }


def table(title: str, results: Sequence[Mapping[str, Any]]) -> str:
    """Return a Markdown table with one line per run."""
    names = list(results[0]["final"])
    lines = [f"# {title}", "", f"| | | {' | '.join(names)} | seconds |", "|---|---|" + "---|" * (len(names) + 1)]
    for row in results:
        numbers = " | ".join(f"{row['final'][name]:.4f}" for name in names)
        lines.append(f"| {row['group']} | {row['variant']} | {numbers} | {row['seconds']:.0f} |")
    return "\n".join(lines) + "\n"


def group_figure(group: str, label: str, results: Sequence[Mapping[str, Any]]) -> Figure:
    """Plot the curves against steps, with `label` on their axis, and the final values beside them."""
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    curves, final = figure.subplots(1, 2)
    for row in results:
        steps, cosines = [step for step, _ in row["curve"]], [cosine for _, cosine in row["curve"]]
        curves.plot(steps, cosines, label=row["variant"])
    curves.set(xlabel="step", ylabel=label, title=group)
    curves.legend()
    variants = [textwrap.fill(row["variant"], 12) for row in results]
    for name in results[0]["final"]:
        final.plot(variants, [row["final"][name] for row in results], "o-", label=name)
    final.set_title("final values")
    final.legend(loc="center left", bbox_to_anchor=(1, 0.5))  # beside the axes, since lines are at every height
    return figure


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status."""
    parser = CommandParser.of_module("train.study", __doc__)
    parser.add_argument("study", type=Path, help="study file, e.g. of train/configs/studies")
    parser.add_argument("--output_dir", type=Path, required=True, help="directory for runs, table and figures")
    parser.add_argument("--teacher", required=True, help="as for train.bootstrap")
    parser.add_argument("--data_path", required=True, help="unlabelled images to train on")
    parser.add_argument("--eval_data_path", required=True, help="held-out images")
    parser.add_argument("--max_steps", type=int, help="steps of each run (default: the study's)")

    def command(arguments: Namespace) -> None:
        given = {name: value for name, value in vars(arguments).items() if value is not None}
        run_study(given.pop("study"), given.pop("output_dir"), given)

    return parser.run(command, argv)


def run_study(file: Path, output_dir: Path, common: Arguments) -> None:
    """Run a study file and write its results."""
    plan = read_study(file)
    runs = runs_of(plan, common, output_dir)
    for number, todo in enumerate(runs, start=1):
        logger.info("Run %d of %d: %s, %s", number, len(runs), todo.group, todo.variant)
        run(todo, plan.measure)
    results = [result(done, plan.curve, plan.columns) for done in runs]
    write_json(output_dir / "study.json", results)
    write_text(output_dir / "study.md", table(plan.title, results))
    for group in plan.groups:
        figure = group_figure(group, CURVES[plan.curve], [row for row in results if row["group"] == group])
        save_figure(figure, output_dir / f"{group.replace(' ', '_')}.png")


if __name__ == "__main__":
    sys.exit(main())
