"""A study: bootstraps that differ in one thing each, on the same teacher and data, with a table and figures.

    python -m train.study train/configs/studies/easy_vqa.yaml --output_dir runs/study \\
        --teacher runs/quickstart/teacher --data_path IMAGES --eval_data_path HELD_OUT_IMAGES

A study file (YAML) holds `arguments` of `train/bootstrap.py` that every run has, and `groups` of variants, each with
the arguments that it changes. Variants with equal arguments are run once. `measure`, if given, is a further command
(a module and its arguments) after each run, whose `--output` is a JSON file; its fractions go into table and figures.
`curve` says which of `CURVES` is drawn against steps.

Result: a folder per run, study.json, study.md, and a figure per group. Run again, it goes on where it was.
"""

import argparse
import json
import logging
import re
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from matplotlib.figure import Figure

from sparse_vlm.errors import UserError, exit_with_sentence, unknown_choice
from sparse_vlm.figures import save_figure
from sparse_vlm.files import write_json, write_text
from train.forked import fork_python
from train.stages.log import LOG_NAME, read_log

logger = logging.getLogger(__name__)
Arguments = dict[str, Any]
CURVES = {  # of log.jsonl
    "eval_cosine": "cosine with the teacher, held out",
    "eval_centered_cosine": "cosine of deviations, held out",
}


@dataclass(frozen=True)
class Study:
    """A study file.

    Attributes:
        title: for people.
        groups: group -> variant -> the arguments that it changes.
        arguments: of every run.
        measure: a command after each run, with {run} for the run's folder and {NAME} for an argument; empty: none.
        curve: a key of `CURVES`.
    """

    title: str
    groups: Mapping[str, Mapping[str, Arguments]]
    arguments: Arguments = field(default_factory=dict)
    measure: Sequence[str] = ()
    curve: str = "eval_cosine"


@dataclass(frozen=True)
class Run:
    """One variant of a group and the folder of its results, which variants with equal arguments share."""

    group: str
    variant: str
    arguments: Arguments
    folder: Path


def read_study(file: Path) -> Study:
    """Reads a study file.

    Raises:
        UserError: no such file, no YAML, or not what `Study` says.
    """
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
        study = Study(**values)
        if not isinstance(study.groups, dict) or not all(isinstance(v, dict) and v for v in study.groups.values()):
            raise TypeError("its groups are no mapping of group to variants to arguments")
        if not study.groups:
            raise TypeError("it has no groups of variants")
        if study.curve not in CURVES:
            raise unknown_choice("curve", study.curve, tuple(CURVES))
    except OSError as error:
        raise UserError(f"Cannot read the study {file}: {error.strerror}.") from None
    except (yaml.YAMLError, TypeError) as error:
        raise UserError(
            f"{file} is no study ({error}). It holds title, groups, and maybe arguments, measure."
        ) from None
    return study


def runs_of(study: Study, common: Arguments, output_dir: Path) -> list[Run]:
    """The runs in order; `common` are arguments of every run that belong to this machine, such as paths.

    Raises:
        UserError: two variants' names give one folder.
    """
    folders: dict[str, Path] = {}
    runs = []
    for group, variants in study.groups.items():
        for variant, changes in variants.items():
            arguments = {**study.arguments, **common, **changes}
            key = json.dumps(arguments, sort_keys=True)
            name = re.sub(r"[^\w.-]", "_", f"{group}-{variant}")
            if key not in folders and output_dir / name in folders.values():
                raise UserError(f"Two variants would have the folder {name}: name them more differently.")
            runs.append(Run(group, str(variant), arguments, folders.setdefault(key, output_dir / name)))
    return runs


def run(todo: Run, measure: Sequence[str]) -> None:
    """Bootstraps and measures, unless that is done.

    Raises:
        UserError: a command failed (its own message stands above), or the folder is of a run with other arguments.
    """
    _require_same_arguments(todo)
    words = [word for name, value in todo.arguments.items() for word in (f"--{name}", str(value))]
    if not (todo.folder / "config.json").exists():
        _call(["train.bootstrap", *words, "--output_dir", str(todo.folder)])
    if measure and not (todo.folder / "measured.json").exists():
        places = {"run": todo.folder, **todo.arguments}
        _call([word.format(**places) for word in measure] + ["--output", str(todo.folder / "measured.json")])


def _require_same_arguments(todo: Run) -> None:
    """What a folder was made with stands in it: results must not be told under other arguments."""
    file = todo.folder / "arguments.json"
    if not file.exists():
        todo.folder.mkdir(parents=True, exist_ok=True)
        write_json(file, todo.arguments)
    earlier = json.loads(file.read_text(encoding="utf-8"))
    for name in earlier | todo.arguments:
        if earlier.get(name) != todo.arguments.get(name):
            raise UserError(
                f"{todo.folder} was made with {name} {earlier.get(name)}, now it is {todo.arguments.get(name)}. "
                "Choose another --output_dir, or remove the folder."
            )


def _call(command: Sequence[str]) -> None:
    logger.warning("$ python -m %s", " ".join(command))
    process = fork_python(["-m", *command])
    process.join()
    if process.exitcode:
        raise UserError(f"{command[0]} failed with exit status {process.exitcode}. Run again to go on from here.")


def result(done: Run, name: str) -> dict[str, Any]:
    """What a finished run gave: the final cosines, the curve of that name against steps, what else was measured."""
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
        | {k: v for k, v in numbers.items() if isinstance(v, float)},
        "seconds": lines[-1]["seconds"],
    }


def table(title: str, results: Sequence[Mapping[str, Any]]) -> str:
    """Markdown, a line per run."""
    names = list(results[0]["final"])
    lines = [f"# {title}", "", f"| | | {' | '.join(names)} | seconds |", "|---|---|" + "---|" * (len(names) + 1)]
    for row in results:
        numbers = " | ".join(f"{row['final'][name]:.4f}" for name in names)
        lines.append(f"| {row['group']} | {row['variant']} | {numbers} | {row['seconds']:.0f} |")
    return "\n".join(lines) + "\n"


def group_figure(group: str, label: str, results: Sequence[Mapping[str, Any]]) -> Figure:
    """The curves against steps, named by `label`, and the final numbers beside them."""
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
    final.set_title("at the end")
    final.legend(loc="center left", bbox_to_anchor=(1, 0.5))  # beside the axes: lines lie at every height
    return figure


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="a file of train/configs/studies")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--teacher", required=True, help="as for train/bootstrap.py")
    parser.add_argument("--data_path", required=True, help="unlabelled images")
    parser.add_argument("--eval_data_path", required=True, help="held-out images")
    parser.add_argument("--max_steps", type=int, help="instead of the study's own")
    arguments = vars(parser.parse_args(argv))
    file, output_dir = arguments.pop("study"), arguments.pop("output_dir")
    common = {name: value for name, value in arguments.items() if value is not None}
    return exit_with_sentence(lambda: run_study(file, output_dir, common))


def run_study(file: Path, output_dir: Path, common: Arguments) -> None:
    """Runs a study file and writes its results."""
    plan = read_study(file)
    runs = runs_of(plan, common, output_dir)
    for number, todo in enumerate(runs, start=1):
        logger.warning("Run %d of %d: %s, %s", number, len(runs), todo.group, todo.variant)
        run(todo, plan.measure)
    results = [result(done, plan.curve) for done in runs]
    write_json(output_dir / "study.json", results)
    write_text(output_dir / "study.md", table(plan.title, results))
    for group in plan.groups:
        figure = group_figure(group, CURVES[plan.curve], [row for row in results if row["group"] == group])
        save_figure(figure, output_dir / f"{group.replace(' ', '_')}.png")


if __name__ == "__main__":
    sys.exit(main())
