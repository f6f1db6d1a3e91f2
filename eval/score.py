"""`python -m eval.score BENCHMARK --answers out.jsonl`: scores of any model's answers in LLaVA's format.

Every question must be answered exactly once; otherwise the exit status is 2 and one sentence says what is wrong.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from eval.answers import match_answers, read_answers
from eval.benchmarks import BENCHMARKS, find_benchmark
from eval.protocol import Benchmark, Question
from eval.records import write_lines
from eval.report import judge_prompts, make_report
from eval.tables import as_markdown, as_tables
from sparse_vlm.errors import UserError, exit_with_sentence
from sparse_vlm.files import write_json, write_text


def build_parser() -> argparse.ArgumentParser:
    """The arguments of `python -m eval.score`."""
    parser = argparse.ArgumentParser(prog="python -m eval.score", description="Scores of a benchmark's answers.")
    parser.add_argument("benchmark", help=", ".join(BENCHMARKS))
    parser.add_argument("--answers", type=Path, required=True, help="answers of any model, LLaVA's .jsonl")
    parser.add_argument("--questions", type=Path, help="the benchmark's official question file")
    parser.add_argument("--annotations", type=Path, help="the benchmark's official annotations, file or folder")
    parser.add_argument("--no-image-answers", type=Path, help="answers of `eval.generate --no-image`, as a floor")
    parser.add_argument("--output", type=Path, help="report.json to write; a report.md is written beside it")
    server = parser.add_argument_group("instead of a score, or besides it with --annotations")
    server.add_argument("--submission", type=Path, help="file to write for the benchmark's server")
    server.add_argument(
        "--submission-questions",
        type=Path,
        help="question file of the whole split, if only a part was asked: the rest is submitted as empty answers",
    )
    judge = parser.add_argument_group("benchmarks with a judge")
    judge.add_argument("--judge-inputs", type=Path, help="instead of a score: the judge's prompts, .jsonl to write")
    judge.add_argument("--judgements", type=Path, help="the judge's replies to them, .jsonl as --answers")
    return parser


def _run(arguments: argparse.Namespace) -> None:
    _check_options(arguments)
    if arguments.judge_inputs is not None:
        _write_judge_inputs(arguments)
        return
    if arguments.submission is not None:
        _write_submission(arguments)
        if arguments.annotations is None:
            return
    report = make_report(
        arguments.benchmark,
        arguments.answers,
        questions=arguments.questions,
        annotations=arguments.annotations,
        no_image_answers=arguments.no_image_answers,
        judgements=arguments.judgements,
    )
    for table in as_tables(report):
        Console().print(table)
    if arguments.output is not None:
        write_json(arguments.output, report)
        write_text(arguments.output.with_suffix(".md"), as_markdown(report))


def _check_options(arguments: argparse.Namespace) -> None:
    """Refuses what the benchmark has not, before anything is read."""
    benchmark = find_benchmark(arguments.benchmark)
    for option, part, available in (
        ("--judge-inputs", "judge", benchmark.judge_inputs),
        ("--judgements", "judge", benchmark.judge_inputs),
        ("--submission", "server", benchmark.write_submission),
    ):
        if getattr(arguments, option[2:].replace("-", "_")) is not None and available is None:
            raise UserError(f"{arguments.benchmark} has no {part}; leave out {option}.")


def _answered(arguments: argparse.Namespace) -> tuple[Benchmark, list[Question], list[str]]:
    benchmark = find_benchmark(arguments.benchmark)
    questions = benchmark.load_questions(arguments.questions, None)
    return benchmark, questions, match_answers(read_answers(arguments.answers), questions, arguments.answers)


def _write_judge_inputs(arguments: argparse.Namespace) -> None:
    _, questions, texts = _answered(arguments)
    prompts = judge_prompts(arguments.benchmark, questions, texts, arguments.annotations)
    write_lines(
        arguments.judge_inputs, [{"question_id": questions[place].id, "text": prompt} for place, prompt in prompts]
    )
    print(f"{len(prompts)} prompts for the judge: {arguments.judge_inputs}")


def _write_submission(arguments: argparse.Namespace) -> None:
    benchmark, questions, texts = _answered(arguments)
    assert benchmark.write_submission is not None  # `_check_options`
    file = arguments.questions
    if arguments.submission_questions is not None:
        file = arguments.submission_questions
        given = {str(question.id): text for question, text in zip(questions, texts, strict=True)}
        questions = benchmark.load_questions(file, None)
        strangers = given.keys() - {str(question.id) for question in questions}
        if strangers:
            raise UserError(f"{file} lacks {len(strangers)} of the questions that were asked, e.g. {min(strangers)!r}.")
        texts = [given.get(str(question.id), "") for question in questions]
    benchmark.write_submission(file, questions, texts, arguments.submission)
    print(f"{len(texts)} answers for the server: {arguments.submission}")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    arguments = build_parser().parse_args(argv)
    return exit_with_sentence(lambda: _run(arguments))


if __name__ == "__main__":
    sys.exit(main())
