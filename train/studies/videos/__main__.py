"""Tune an image model on short clips, with few and many tokens per frame at an equal total, and with one frame alone.

    python -m train.studies.videos --output_dir runs/videos --model runs/quickstart/model

The clips are made on the spot; see train/studies/videos/clips.py. The learning rate is chosen on the validation clips,
with the second of --settings, and then serves all. Only after that are the test clips read. Every step is one of the
project's own commands; its command and output are in logs/STEP.log. Run it again to resume. Docs: docs/video.md.
Result: report.md, report.json, and the model directories.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from sparse_vlm.command_line import CommandParser
from sparse_vlm.errors import UserError
from sparse_vlm.files import check_output, read_object, write_json, write_text
from sparse_vlm.measure.timing import require_positive
from train import outcomes
from train.pipeline import Step, read_seconds, require_same_arguments, run_steps, short_training
from train.studies.videos.clips import FRAMES, KINDS, RATE

BATCH = 8


class Setting(NamedTuple):
    """How a clip is shown: number of frames, and visual tokens of each."""

    frames: int
    tokens: int

    def __str__(self) -> str:
        return f"{self.frames}x{self.tokens}"


def parse_settings(text: str) -> list[Setting]:
    """Parse "12x4,5x9".

    Raises:
        UserError: it is something else, names a setting twice, or has more frames than a clip.
    """
    try:
        settings = [Setting(*map(int, piece.split("x"))) for piece in text.split(",")]
    except (TypeError, ValueError):
        raise UserError(f"--settings are FRAMESxTOKENS with commas between them, got {text!r}.") from None
    for setting in settings:
        require_positive(frames=setting.frames, tokens=setting.tokens)
        if setting.frames > FRAMES:
            raise UserError(f"A clip has {FRAMES} frames, but --settings names {setting}.")
    if len(set(settings)) < len(settings):
        raise UserError(f"--settings names one twice: {text}.")
    return settings


class Study:
    """The steps of a run.

    Args:
        arguments: the options.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments, self.root = arguments, Path(arguments.output_dir)
        self.settings = parse_settings(arguments.settings)
        try:
            self.rates = [float(rate) for rate in arguments.learning_rates.split(",")]
        except ValueError:
            raise UserError(
                f"--learning_rates are numbers with commas between them, got {arguments.learning_rates!r}."
            ) from None
        require_positive(steps=arguments.steps, validation=arguments.validation, test=arguments.test)
        self.searched = self.settings[min(1, len(self.settings) - 1)]

    def data(self) -> Step:
        """Return the step that makes the clips."""
        words = ["-m", "train.studies.videos.data", "--output_dir", str(self.root / "data")]
        words += ["--train", str(self.arguments.steps * BATCH), "--validation", str(self.arguments.validation)]
        words += ["--test", str(self.arguments.test), "--seed", str(self.arguments.seed)]
        return Step("data", "Clips and questions", tuple(words), self.root / "data" / "train.json")

    def tune(self, setting: Setting, rate: float) -> Step:
        """Return the tuning in a setting."""
        model = self.model(setting, rate)
        words = ["-m", "train.instruct", "--model_name_or_path", self.arguments.model]
        words += ["--data_path", str(self.root / "data" / "train.json"), "--fps", str(RATE)]
        words += ["--video_folder", str(self.root / "data" / "train"), "--independent_turns", "True"]
        words += ["--max_frames", str(setting.frames), "--frame_tokens", str(setting.tokens)]
        words += ["--learning_rate", f"{rate:g}", "--mm_projector_lr", "1e-4", "--warmup_steps", "5"]
        words += ["--per_device_train_batch_size", str(BATCH), "--train_sampling_strategy", "sequential"]
        words += short_training(model, None, None, seed=self.arguments.seed)
        title = f"Tuning with {setting} at {rate:g}"
        return Step(
            f"tune_{model.name}", title, tuple(words), model / "config.json", None, partial(outcomes.loss, model)
        )

    def measure(self, setting: Setting, rate: float, questions: str) -> Step:
        """Return the measurement on "validation", "test", or either with "_blind"."""
        model, scores = self.model(setting, rate), self.scores(setting, rate, questions)
        words = ["-m", "train.studies.videos.measure", "--model", str(model)]
        words += ["--data_path", str(self.root / "data" / f"{questions}.json")]
        words += ["--train_path", str(self.root / "data" / "train.json"), "--max_frames", str(setting.frames)]
        words += ["--video_folder", str(self.root / "data" / questions.removesuffix("_blind"))]
        words += ["--frame_tokens", str(setting.tokens), "--output", str(scores)]
        title = f"{questions} questions, {setting} at {rate:g}"
        return Step(f"{questions}_{model.name}", title, tuple(words), scores, None, partial(_accuracy, scores))

    def model(self, setting: Setting, rate: float) -> Path:
        """Return the directory of a tuned model."""
        return self.root / f"model_{setting}_{rate:g}"

    def scores(self, setting: Setting, rate: float, questions: str) -> Path:
        """Return the file of a model's scores."""
        return self.root / "scores" / f"{questions}_{setting}_{rate:g}.json"

    def search(self) -> list[Step]:
        """Return the steps up to the validation scores of all learning rates. They see no test clip."""
        pairs = [(self.searched, rate) for rate in self.rates]
        return [self.data()] + [
            step for pair in pairs for step in (self.tune(*pair), self.measure(*pair, "validation"))
        ]

    def chosen(self) -> float:
        """Return the learning rate with the best validation accuracy."""
        return max(self.rates, key=lambda rate: self.accuracy(self.searched, rate, "validation"))

    def accuracy(self, setting: Setting, rate: float, questions: str) -> float:
        """Return a measured accuracy."""
        return read_object(self.scores(setting, rate, questions))["scores"]["accuracy"]

    def final(self, rate: float) -> list[Step]:
        """Return the steps that tune all settings and measure them on the test clips."""
        tuned = [self.tune(setting, rate) for setting in self.settings]
        return tuned + [
            self.measure(setting, rate, questions) for setting in self.settings for questions in ("test", "test_blind")
        ]

    def report(self, rate: float) -> dict[str, Any]:
        """Collect the numbers of all steps."""
        rows = []
        for setting in self.settings:
            seen, blind = (read_object(self.scores(setting, rate, name)) for name in ("test", "test_blind"))
            rows.append(
                {**setting._asdict(), "total": setting.frames * setting.tokens, **seen, "blind": blind["scores"]}
            )
        validation = {f"{one:g}": self.accuracy(self.searched, one, "validation") for one in self.rates}
        return {
            "settings": vars(self.arguments) | {"output_dir": str(self.root)},
            "choice": {"validation": validation, "learning_rate": rate},
            "models": rows,
            "seconds_by_step": read_seconds(self.root).by_step,
        }


def as_markdown(report: dict[str, Any]) -> str:
    """Return the table of a report."""
    lines = [f"| frames × tokens | total | accuracy | {' | '.join(KINDS)} |", f"|---|{'---:|' * (2 + len(KINDS))}"]
    rows = report["models"]
    for row in rows:
        lines.append(_row(f"{row['frames']} × {row['tokens']}", row["total"], row["scores"]))
    for row in rows:
        lines.append(_row(f"{row['frames']} × {row['tokens']}, asked without the clip", 0, row["blind"]))
    lines.append(_row("most frequent answer", 0, rows[0]["majority"]))
    return "\n".join([*lines, ""])


def _row(name: str, total: int, scores: dict[str, Any]) -> str:
    kinds = " | ".join(f"{scores['by_kind'][kind]['accuracy']:.1%}" for kind in KINDS)
    return f"| {name} | {total} | {scores['accuracy']:.1%} | {kinds} |"


def _accuracy(file: Path) -> str:
    scores = read_object(file)["scores"]
    return f"{scores['accuracy']:.1%} of {scores['questions']} questions"


def study(arguments: argparse.Namespace) -> None:
    """Run all steps and write the report."""
    steps = Study(arguments)
    check_output(steps.root, arguments.model)
    require_same_arguments(steps.root, vars(arguments) | {"output_dir": str(steps.root)})
    console = Console()
    run_steps(steps.search(), steps.root, console)
    rate = steps.chosen()
    run_steps(steps.final(rate), steps.root, console)
    report = steps.report(rate)
    write_json(steps.root / "report.json", report)
    write_text(steps.root / "report.md", as_markdown(report))
    console.print(f"See {steps.root}/report.md.")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status."""
    parser = CommandParser.of_module("train.studies.videos", __doc__)
    parser.add_argument("--output_dir", type=Path, required=True, help="directory for all results")
    parser.add_argument("--model", required=True, help="a finished image model, e.g. the quickstart's")
    settings = "12x4,5x9,3x16,1x36"
    parser.add_argument(
        "--settings", default=settings, help=f"FRAMESxTOKENS to compare, with commas between them (default: {settings})"
    )
    rates = "1e-4,3e-4"
    parser.add_argument("--learning_rates", default=rates, help=f"to choose among (default: {rates})")
    for name, default, text in (
        ("steps", 60, f"steps of each tuning, {BATCH} clips each"),
        ("validation", 64, "clips to choose the learning rate with"),
        ("test", 200, "clips for the test questions"),
        ("seed", 0, "seed of all draws"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{text} (default: {default})")
    return parser.run(study, argv)


if __name__ == "__main__":
    sys.exit(main())
