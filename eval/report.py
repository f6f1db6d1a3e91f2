"""A benchmark's report: scores with confidence intervals, floors and published scores beside them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from eval.answers import Answer, match_answers, read_answers, read_judgements
from eval.benchmarks import find_benchmark
from eval.protocol import Benchmark, Predictions, Question, Scores
from eval.published import NOTES, published_scores
from sparse_vlm.errors import UserError


def make_report(
    benchmark_name: str,
    answers: Path,
    *,
    questions: Path | None = None,
    annotations: Path | None = None,
    no_image_answers: Path | None = None,
    judgements: Path | None = None,
) -> dict[str, Any]:
    """Scores an answers file.

    Args:
        benchmark_name: see eval/benchmarks.py.
        answers: LLaVA's format, complete, of any model.
        questions: the official file; None: the benchmark's default, where it has one.
        annotations: the official file or folder; None: the questions' file, where it has the answers.
        no_image_answers: the same model's answers of `generate --no-image`.
        judgements: a judge's replies, where the benchmark has a judge, in the format of answers.

    Returns:
        the content of report.json: "benchmark", "protocol", "model_id", "image" (False: answered without the images),
        "visual_tokens" (of a picture; None: not recorded), "questions" (their number), "judged" (how many answers a
        judge read; None: no judge), "scale" ("share" or "points"),
        "points" (names of scores on a scale of their own all the same), "scores" (nested names), and with the same
        names inside "counts" (questions behind a score), "confidence_95" ([low, high]) and each of "floors";
        "published" (see `_published`).

    Raises:
        UserError: unknown benchmark, answers that do not fit its questions, annotations that do not fit.
    """
    benchmark = find_benchmark(benchmark_name)
    asked = benchmark.load_questions(questions, None)
    if annotations is None and benchmark.annotated:
        annotations = questions
    given = read_answers(answers)
    texts: Predictions = match_answers(given, asked, answers)
    judged = None
    if judgements is not None or (benchmark.judge_inputs is not None and benchmark.judge == "needed"):
        if no_image_answers is not None:
            raise UserError(
                "Answers without images need a judge of their own: score them alone, without --no-image-answers."
            )
        if benchmark.judge == "needed" and benchmark.judge_inputs is not None:
            places = list(range(len(asked)))  # whose prompts may need files that the scores do not
        else:
            places = [place for place, _ in judge_prompts(benchmark_name, asked, texts, annotations)]
        texts, judged = _judged(asked, texts, places, judgements), len(places)
    scores = benchmark.score(asked, texts, annotations)
    floors = dict(benchmark.floors(asked, annotations))
    if no_image_answers is not None:
        floors["no_image"] = _blind(asked, no_image_answers)
    return {
        "benchmark": benchmark_name,
        "protocol": benchmark.protocol(asked),
        "model_id": _one_value("model_id", [answer.model_id for answer in given], answers),
        # other programs may write anything under these names
        "image": _one_value("image", [answer.metadata.get("image") is not False for answer in given], answers),
        "visual_tokens": _one_value("visual_tokens", [_tokens(answer) for answer in given], answers),
        "questions": len(asked),
        "judged": judged,
        "scale": benchmark.scale,
        "points": list(benchmark.points),
        "scores": _values(scores),
        "counts": _nest({path: score.count for path, score in scores.items()}),
        "confidence_95": _nest({path: list(score.interval) for path, score in scores.items()}),
        "floors": {
            name: _values(benchmark.score(asked, predictions, annotations)) for name, predictions in floors.items()
        },
        "published": _published(benchmark, scores),
    }


def judge_prompts(
    benchmark_name: str, asked: Sequence[Question], texts: Predictions, annotations: Path | None
) -> list[tuple[int, str]]:
    """(index of the question, prompt) for each answer that a judge is to read.

    Raises:
        UserError: the benchmark has no judge.
    """
    benchmark = find_benchmark(benchmark_name)
    if benchmark.judge_inputs is None:
        raise UserError(f"{benchmark_name} has no judge.")
    prompts = benchmark.judge_inputs(asked, texts, annotations)
    return [(place, prompt) for place, prompt in enumerate(prompts) if prompt is not None]


def _judged(asked: Sequence[Question], texts: Predictions, places: Sequence[int], judgements: Path | None) -> list[str]:
    """The answers, with the judge's replies in the places that it was asked about."""
    if judgements is None:
        raise UserError(
            "This benchmark needs a judge: write its inputs with --judge-inputs FILE, and give its replies, lines of "
            '{"question_id", "text"}, with --judgements FILE.'
        )
    replies = match_answers(read_judgements(judgements), [asked[place] for place in places], judgements)
    by_place = dict(zip(places, replies, strict=True))
    return [by_place.get(place, text) for place, text in enumerate(texts)]


def _blind(asked: Sequence[Question], path: Path) -> list[str]:
    answers = read_answers(path)
    if any(answer.metadata.get("image") is not False for answer in answers):
        raise UserError(f"{path} was not made by `python -m eval.generate --no-image`.")
    return match_answers(answers, asked, path)


def _tokens(answer: Answer) -> int | None:
    value = answer.metadata.get("visual_tokens")
    return value if isinstance(value, int) else None


def _one_value(name: str, values: Sequence[Any], path: Path) -> Any:
    """What all lines of an answers file have in common."""
    different = list(dict.fromkeys(values))
    if len(different) > 1:
        raise UserError(f'{path} holds answers with different "{name}": {", ".join(map(str, different))}.')
    return different[0]


def _published(benchmark: Benchmark, scores: Scores) -> dict[str, Any] | None:
    """The published column with our number in it: "column", "note", "ours" (None: its part was not asked), "rows"."""
    if benchmark.published is None:
        return None
    column, ours = benchmark.published
    return {
        "column": column,
        "note": NOTES[column],
        "ours": ours(scores),
        "rows": [asdict(row) for row in published_scores(column)],
    }


def _values(scores: Scores) -> dict[str, Any]:
    return _nest({path: score.value for path, score in scores.items()})


def _nest(values: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    """{("a", "b"): 1} -> {"a": {"b": 1}}"""
    nested: dict[str, Any] = {}
    for path, value in values.items():
        inner = nested
        for name in path[:-1]:
            inner = inner.setdefault(name, {})
        inner[path[-1]] = value
    return nested
