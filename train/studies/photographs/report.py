"""The study's report: numbers in report.json, tables in report.md, bars in accuracy.png."""

from collections.abc import Sequence
from typing import Any

from sparse_vlm.figures import accuracy_figure, save_figure
from sparse_vlm.files import read_object, write_json, write_text
from train.pipeline import Step, read_seconds
from train.studies.photographs.paths import DENSE, STUDENT, Paths
from train.studies.photographs.questions import KINDS
from train.studies.photographs.settings import Settings
from train.studies.photographs.steps import SIDES, reads_test_photographs, token_counts

TITLES = {STUDENT: "SparseFormer", DENSE: "dense teacher"}
FREQUENT = "most frequent answer"  # the floor of `short_answers`


def write_report(settings: Settings, paths: Paths, steps: Sequence[Step]) -> dict[str, Any]:
    """Write report.json, report.md and accuracy.png, and return the content of report.json.

    Args:
        settings: the settings.
        paths: the run's files.
        steps: all steps of the run.
    """
    report = collect(settings, paths, steps)
    write_json(paths.root / "report.json", report)
    bars = {_label(row): _by_kind(row["scores"]) for row in report["models"]}
    bars |= {f"{_label(row)}, grey images": _by_kind(row["grey_images"]) for row in report["models"]}
    intervals = {_label(row): _by_kind(row["confidence_95"]) for row in report["models"]}
    save_figure(accuracy_figure(bars, intervals), paths.root / "accuracy.png")
    write_text(paths.root / "report.md", as_markdown(report))
    return report


def collect(settings: Settings, paths: Paths, steps: Sequence[Step]) -> dict[str, Any]:
    """Collect the numbers of all steps, and the names of the steps that read test photographs."""
    choice, seconds = read_object(paths.choice), read_seconds(paths.root)
    models = []
    for side in SIDES:
        rate = choice[side]["learning_rate"]
        own = read_object(paths.model(side, rate) / "processor_config.json")["num_image_tokens"]
        for count in token_counts(settings, side):
            seen, blank = (read_object(paths.scores(side, rate, name, count)) for name in ("test", "blank"))
            models.append(
                {
                    "tower": TITLES[side],
                    "visual_tokens": own if count is None else count,
                    "learning_rate": rate,
                    "scores": seen["scores"],
                    "confidence_95": seen["confidence_95"],
                    "grey_images": blank["scores"],
                    "questions": seen["questions"],
                    "most_frequent_answer": seen["floors"][FREQUENT],
                }
            )
    return {
        "settings": settings.to_json(),
        "choice": choice,
        "models": models,
        "probe": _probed(read_object(paths.probe), settings) if paths.probe.exists() else None,
        "seconds_by_step": seconds.by_step,
        "steps_resumed": seconds.resumed,
        "steps_that_read_test_photographs": [
            step.name for step in steps if reads_test_photographs(step, settings, paths)
        ],
    }


def _probed(result: dict[str, Any], settings: Settings) -> list[dict[str, Any]]:
    """Return the linear probe of the teacher and of the student with each number of tokens that the study has."""
    rows: list[dict[str, Any]] = []
    for name, encoder in result["encoders"].items():
        side = DENSE if name == "teacher" else STUDENT
        row = {"tower": TITLES[side], "visual_tokens": encoder["tokens"]}
        known = [{key: other[key] for key in row} for other in rows]
        if (side == DENSE or encoder["tokens"] in settings.tokens) and row not in known:
            linear = {name: scores["linear"] for name, scores in encoder["representations"].items()}
            rows.append(row | {"linear": linear})
    return rows


def _label(row: dict[str, Any]) -> str:
    return f"{row['tower']}, {row['visual_tokens']} tokens"


def _by_kind(scores: dict[str, Any]) -> dict[str, Any]:
    return {"all": scores["accuracy"]} | {kind: scores["accuracy_by_type"][kind] for kind in KINDS}


def as_markdown(report: dict[str, Any]) -> str:
    """Format the report as Markdown."""
    models, settings = report["models"], report["settings"]
    lines = [
        "# A vision-language model on photographs",
        "",
        f"Exact match on {models[0]['questions']} questions about {settings['test_images']} test photographs, greedy "
        "answers, with 95% intervals (bootstrap over photographs).",
        "",
        f"| | all | {' | '.join(KINDS)} |",
        f"|---|---:|{'---:|' * len(KINDS)}",
        *(_row(_label(row), _by_kind(row["scores"]), _by_kind(row["confidence_95"])) for row in models),
        *(_row(f"{_label(row)}, shown grey images", _by_kind(row["grey_images"])) for row in models),
        _row("always the kind's most frequent answer", _by_kind(models[0]["most_frequent_answer"])),
        "",
        "![accuracy](accuracy.png)",
        "",
        *_probe_lines(report["probe"]),
        "Learning rates of the instruction tuning, chosen by accuracy on the validation questions (mean over the "
        "numbers of tokens):",
        "",
        *_choice_lines(report["choice"]),
        "",
        "| step | seconds |",
        "|---|---:|",
        *(f"| {name} | {value:.0f} |" for name, value in report["seconds_by_step"].items()),
        "",
        *([f"Resumed: {', '.join(report['steps_resumed'])}.", ""] if report["steps_resumed"] else []),
        "Only these steps read test photographs or questions: "
        f"{', '.join(report['steps_that_read_test_photographs'])}.",
        "",
    ]
    return "\n".join(lines)


def _row(name: str, values: dict[str, float], intervals: dict[str, Sequence[float]] | None = None) -> str:
    cells = []
    for kind, value in values.items():
        cell = f"{value:.1%}"
        if intervals is not None:
            low, high = intervals[kind]
            cell += f" ({low:.1%} – {high:.1%})"
        cells.append(cell)
    return f"| {name} | {' | '.join(cells)} |"


def _probe_lines(rows: list[dict[str, Any]] | None) -> list[str]:
    if rows is None:
        return []
    names = list(rows[0]["linear"])
    lines = [
        "A linear probe of the towers, trained on the training photographs, names the thing in the test photographs:",
        "",
        f"| | {' | '.join(names)} |",
        f"|---|{'---:|' * len(names)}",
    ]
    for row in rows:
        values = {name: row["linear"][name]["accuracy"] for name in names}
        lines.append(_row(_label(row), values, {name: row["linear"][name]["confidence_95"] for name in names}))
    return [*lines, ""]


def _choice_lines(choice: dict[str, Any]) -> list[str]:
    rates = list(next(iter(choice.values()))["validation"])
    lines = [f"| | {' | '.join(rates)} | chosen |", f"|---|{'---:|' * (len(rates) + 1)}"]
    for side, chosen in choice.items():
        accuracies = " | ".join(f"{chosen['validation'][rate]:.1%}" for rate in rates)
        lines.append(f"| {TITLES[side]} | {accuracies} | {chosen['learning_rate']:g} |")
    return lines
