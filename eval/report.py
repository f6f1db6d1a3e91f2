"""The report of a benchmark: scores with confidence intervals, floors and published scores."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from eval.answers import (
    Answer,
    answers_by_place,
    match_answers,
    read_answers,
    read_judgements,
    require_answers,
)
from eval.benchmarks import find_benchmark
from eval.parts import Inputs, Part, read_part
from eval.published import NOTES, published_scores
from eval.scoring.protocol import Benchmark, Mark, Scores
from sparse_vlm.errors import UserError


class Scored(NamedTuple):
    """The content of report.json, and every answer as the scorer read it."""

    report: dict[str, Any]
    marks: list[Mark]


def make_report(
    benchmark_name: str,
    answers: Path,
    *,
    questions: Path | None = None,
    annotations: Path | None = None,
    no_image_answers: Path | None = None,
    judgements: Path | None = None,
) -> dict[str, Any]:
    """Report on answers to a whole benchmark; see `Inputs` and `score_answers`."""
    inputs = Inputs(answers, questions, annotations, no_image_answers, judgements)
    return score_answers(find_benchmark(benchmark_name), benchmark_name, inputs).report


def score_answers(benchmark: Benchmark, name: str, inputs: Inputs) -> Scored:
    """Score an answers file.

    Args:
        benchmark: the benchmark.
        name: its name in eval/benchmarks/__init__.py.
        inputs: the files, and which questions to score.

    Returns:
        the content of report.json and the marks behind it. docs/evaluation.md explains the report's keys. "scores",
        "counts", "confidence_95" and each of "floors" nest the same names.

    Raises:
        UserError: unknown benchmark, or answers or annotations that do not belong to its questions.
    """
    annotations = inputs.annotations
    if annotations is None and benchmark.annotated:
        annotations = inputs.questions
    part = read_part(benchmark, inputs)
    known = benchmark.known(part.questions, annotations)
    texts, judged = _judged(benchmark, part, annotations, inputs)
    marks = [benchmark.mark(part.questions[place], texts[place], known[place]) for place in part.places]
    scores = benchmark.aggregate(marks)
    report = {
        "benchmark": name,
        "protocol": "; ".join(
            [benchmark.protocol([mark.question for mark in marks]), *_notes(benchmark, part, marks, inputs.answers)]
        ),
        **_conditions(part.lines, inputs.answers),
        "questions": len(marks),
        "questions_in_benchmark": len(part.questions),
        "unreadable": _unreadable(marks),
        "judged": judged,
        "scale": benchmark.scale,
        "points": list(benchmark.points),
        "scores": _values(scores),
        "counts": _nest({path: score.count for path, score in scores.items()}),
        "confidence_95": _nest({path: list(score.interval) for path, score in scores.items()}),
        "floors": _floors(benchmark, part, known, inputs.no_image_answers),
        "published": _published(benchmark, scores if len(marks) == len(part.questions) else None),
    }
    return Scored(report, marks)


def judge_prompts(benchmark: Benchmark, part: Part, annotations: Path | None) -> list[tuple[int, str]]:
    """Return (index of the question, prompt) for each answer that a judge must read.

    Raises:
        UserError: the benchmark has no judge.
    """
    if benchmark.judge_inputs is None:
        raise UserError("This benchmark has no judge.")
    texts = [part.texts.get(place, "") for place in range(len(part.questions))]
    prompts = benchmark.judge_inputs(part.questions, texts, annotations)
    return [(place, prompt) for place in part.places if (prompt := prompts[place]) is not None]


def result_lines(marks: Sequence[Mark]) -> list[dict[str, Any]]:
    """Return a line for each question: its answer, how the scorer read it, and its credit (1: right)."""
    return [
        {
            "question_id": mark.question.id,
            "prompt": mark.question.text,
            "image": mark.question.image_name,
            "text": mark.text,
            "read": mark.read,
            "right_answer": mark.right,
            "credit": mark.credit,
        }
        for mark in marks
    ]


def _unreadable(marks: Sequence[Mark]) -> int:
    return sum(mark.read is None for mark in marks)


def _generation(answers: Sequence[Answer], path: Path) -> dict[str, Any] | None:
    """Return the settings that `eval.generate` recorded; None: another program wrote the answers."""
    recorded = [answer.metadata.get("generation") for answer in answers]
    settings = [json.dumps(each, sort_keys=True) if isinstance(each, dict) else "null" for each in recorded]
    found: dict[str, Any] | None = json.loads(_one_value("generation", settings, path))
    return found


def _how_generated(settings: Mapping[str, Any] | None) -> str:
    if settings is None:
        return "how the answers were generated is not recorded"
    special = {name: value for name, value in settings.items() if name != "max_new_tokens"}
    named = ", ".join(f"{name} {value!r:.80}" for name, value in special.items())
    kind = "sampled" if "temperature" in special else "beam search" if "num_beams" in special else "greedy generation"
    limit = f"at most {settings.get('max_new_tokens')} new tokens"
    return f"{kind} ({', '.join(filter(None, [named, limit]))})"


def _notes(benchmark: Benchmark, part: Part, marks: Sequence[Mark], path: Path) -> list[str]:
    """Return what the protocol line says about these answers."""
    how = _how_generated(_generation(part.lines, path))
    read = f"{_unreadable(marks):,} of {len(marks):,} answers could not be read and count as {benchmark.unreadable}"
    if len(marks) == len(part.questions):
        return [how, read]
    return [f"a part of the benchmark, {len(marks):,} of {len(part.questions):,} questions", how, read]


def _judged(
    benchmark: Benchmark, part: Part, annotations: Path | None, inputs: Inputs
) -> tuple[Mapping[int, str], int | None]:
    """Return the answers, with the judge's replies in place of those it was asked about, and the number of these."""
    needed = benchmark.judge_inputs is not None and benchmark.judge == "needed"
    if inputs.judgements is None and not needed:
        return part.texts, None
    if inputs.no_image_answers is not None:
        raise UserError("Answers without images need their own judge: score them alone, without --no_image_answers.")
    if inputs.judgements is None:
        raise UserError(
            "This benchmark needs a judge: write its inputs with --judge_inputs FILE, and give its replies, lines of "
            '{"question_id", "text"}, with --judgements FILE.'
        )
    # if a judge reads every answer, building the prompts may need files that scoring does not
    places = part.places if needed else [place for place, _ in judge_prompts(benchmark, part, annotations)]
    asked = [part.questions[place] for place in places]
    replies = match_answers(read_judgements(inputs.judgements), asked, inputs.judgements)
    read = map(benchmark.read_reply, replies)
    return {**part.texts, **dict(zip(places, read, strict=True))}, len(places)


def _floors(benchmark: Benchmark, part: Part, known: Sequence[Any], no_image_answers: Path | None) -> dict[str, Any]:
    """Return the scores of each floor."""
    floors: dict[str, Mapping[int, str]] = {
        name: dict(enumerate(predictions)) for name, predictions in benchmark.floors(part.questions, known).items()
    }
    if no_image_answers is not None:
        floors["no_image"] = _no_image_answers(part, no_image_answers)
    return {
        name: _values(benchmark.aggregate([benchmark.mark(part.questions[i], texts[i], known[i]) for i in part.places]))
        for name, texts in floors.items()
    }


def _no_image_answers(part: Part, path: Path) -> dict[int, str]:
    answers = read_answers(path)
    if any(answer.metadata.get("image") is not False for answer in answers):
        raise UserError(f"{path} was not made by `python -m eval.generate --no_image`.")
    texts = answers_by_place(answers, part.questions, path)
    require_answers(texts, part.places, part.questions, path)
    return texts


def _conditions(answers: Sequence[Answer], path: Path) -> dict[str, Any]:
    """Return which model answered, and under which conditions."""
    return {
        "generation": _generation(answers, path),
        "model_id": _one_value("model_id", [answer.model_id for answer in answers], path),
        # other programs may write anything under these keys
        "image": _one_value("image", [answer.metadata.get("image") is not False for answer in answers], path),
        "visual_tokens": _one_value("visual_tokens", [_tokens(answer) for answer in answers], path),
    }


def _tokens(answer: Answer) -> int | None:
    value = answer.metadata.get("visual_tokens")
    return value if isinstance(value, int) else None


def _one_value(name: str, values: Sequence[Any], path: Path) -> Any:
    """Return the value that all lines of an answers file share."""
    different = list(dict.fromkeys(values))
    if len(different) > 1:
        raise UserError(f'{path} holds answers with different "{name}": {", ".join(map(str, different))}.')
    return different[0]


def _published(benchmark: Benchmark, scores: Scores | None) -> dict[str, Any] | None:
    """Return the published scores and ours: "column", "note", "ours" (None: only a part was asked), "rows"."""
    if benchmark.published is None:
        return None
    column, ours = benchmark.published
    return {
        "column": column,
        "note": NOTES[column],
        "ours": None if scores is None else ours(scores),
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
