"""Score any model's answers to one or several benchmarks.

    python -m eval.score pope --questions llava_pope_test.jsonl --annotations coco --answers a.jsonl --output pope.json
    python -m eval.score mm_vet --questions mm-vet.json --annotations mm-vet.json --answers a.jsonl --judge_inputs FILE
    python -m eval.score vizwiz --questions test.json --answers vizwiz.jsonl --submission vizwiz_upload.json

Every question must be answered exactly once, unless `--part` or `--limit` selects a part. All files are written before
anything is printed.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from eval.benchmarks import find_benchmark
from eval.parts import Inputs, read_part
from eval.report import judge_prompts, result_lines, score_answers
from eval.scoring.protocol import Benchmark
from eval.scoring.records import write_lines
from eval.selection import NAMED, add_benchmarks, add_path, benchmark_names, file_of, path_of
from eval.tables import as_markdown, as_tables
from sparse_vlm.command_line import CommandParser
from sparse_vlm.errors import UserError
from sparse_vlm.files import check_output_files, write_json, write_text

TABLE, RESULTS = ".md", ".results.jsonl"  # beside the report


def build_parser() -> CommandParser:
    """Build the parser of `python -m eval.score`."""
    parser = CommandParser.of_module("eval.score", __doc__)
    add_benchmarks(
        parser,
        answers="answers of any model, LLaVA's .jsonl or a log of lmms-eval; for several benchmarks: the folder of "
        "NAME.jsonl",
        limit="score only the first questions, this many",
    )
    add_path(parser, "--annotations", f"the benchmark's official annotations, file or folder{NAMED}")
    add_path(parser, "--no_image_answers", f"answers of `eval.generate --no_image`, as a floor{NAMED}")
    add_path(
        parser,
        "--output",
        "report.json to write; report.md and report.results.jsonl (right or wrong for each question) are written "
        "beside it; for several benchmarks: a folder",
    )
    parser.add_argument("--part", action="store_true", help="score only the answered questions; the report says so")
    server = parser.add_argument_group("instead of a score, or in addition to it with --annotations")
    add_path(server, "--submission", f"file to write for the benchmark's server{NAMED}")
    add_path(
        server,
        "--submission_questions",
        "question file of the whole split, if only a part was asked: the rest is submitted as empty answers",
    )
    judge = parser.add_argument_group("benchmarks with a judge")
    add_path(judge, "--judge_inputs", f"instead of a score: the judge's prompts, .jsonl to write{NAMED}")
    add_path(judge, "--judgements", f"the judge's replies to them, .jsonl like --answers{NAMED}")
    return parser


@dataclass(frozen=True)
class _Task:
    """The inputs and outputs of one benchmark."""

    name: str
    benchmark: Benchmark
    inputs: Inputs
    report: Path | None
    submission: Path | None
    submission_questions: Path | None
    judge_inputs: Path | None

    def beside(self, ending: str) -> Path | None:
        """Return the report's path with another ending; None if the report is a device such as /dev/stdout."""
        if self.report is None or (self.report.exists() and not self.report.is_file()):
            return None
        return self.report.with_suffix(ending)

    def outputs(self, prefix: str) -> dict[str, Path | None]:
        """Return the path of each output, by a name for errors."""
        return {
            f"{prefix}--output": self.report,
            f"{prefix}the table beside --output": self.beside(TABLE),
            f"{prefix}the results beside --output": self.beside(RESULTS),
            f"{prefix}--submission": self.submission,
            f"{prefix}--judge_inputs": self.judge_inputs,
        }


def _task(arguments: argparse.Namespace, name: str, names: Sequence[str]) -> _Task:
    def path(option: str) -> Path | None:
        return path_of(option, getattr(arguments, option[2:]), name, names)

    answers = file_of("--answers", arguments.answers, name, names, ".jsonl")
    assert answers is not None  # required
    inputs = Inputs(
        answers,
        path("--questions"),
        path("--annotations"),
        path("--no_image_answers"),
        path("--judgements"),
        arguments.limit,
        arguments.part,
    )
    return _Task(
        name,
        find_benchmark(name),
        inputs,
        file_of("--output", arguments.output, name, names, ".json"),
        path("--submission"),
        path("--submission_questions"),
        path("--judge_inputs"),
    )


def _run(arguments: argparse.Namespace) -> None:
    names = benchmark_names(arguments.benchmarks)
    tasks = [_task(arguments, name, names) for name in names]
    for task in tasks:
        _check_options(task)
    read = [path for task in tasks for path in (*vars(task.inputs).values(), task.submission_questions)]
    check_output_files(
        {
            name: path
            for task in tasks
            for name, path in task.outputs("" if len(tasks) == 1 else f"{task.name}: ").items()
        },
        [path for path in read if isinstance(path, Path)],
    )
    printed = [thing for task in tasks for thing in _write_files(task)]
    for thing in printed:
        Console().print(thing)


def _write_files(task: _Task) -> list[Any]:
    """Write a benchmark's files and return what to print."""
    if task.judge_inputs is not None:
        return [_write_judge_inputs(task, task.judge_inputs)]
    printed: list[Any] = []
    if task.submission is not None:
        printed.append(_write_submission(task, task.submission))
        if task.inputs.annotations is None:
            return printed
    report, marks = score_answers(task.benchmark, task.name, task.inputs)
    if task.report is not None:
        table, results = task.beside(TABLE), task.beside(RESULTS)
        write_json(task.report, report)
        if table is not None and results is not None:
            write_text(table, as_markdown(report))
            write_lines(results, result_lines(marks))
    return [*printed, *as_tables(report)]


def _check_options(task: _Task) -> None:
    """Refuse options that the benchmark does not support, before anything is read."""
    for option, part, given, available in (
        ("--judge_inputs", "judge", task.judge_inputs, task.benchmark.judge_inputs),
        ("--judgements", "judge", task.inputs.judgements, task.benchmark.judge_inputs),
        ("--submission", "server", task.submission, task.benchmark.write_submission),
    ):
        if given is not None and available is None:
            raise UserError(f"{task.name} has no {part}. Leave out {option}.")


def _write_judge_inputs(task: _Task, output: Path) -> str:
    part = read_part(task.benchmark, task.inputs)
    prompts = judge_prompts(task.benchmark, part, task.inputs.annotations)
    write_lines(output, [{"question_id": part.questions[place].id, "text": prompt} for place, prompt in prompts])
    return f"{len(prompts)} prompts for the judge: {output}"


def _write_submission(task: _Task, output: Path) -> str:
    assert task.benchmark.write_submission is not None  # `_check_options`
    part = read_part(task.benchmark, task.inputs)
    file = task.inputs.questions
    questions = [part.questions[place] for place in part.places]
    texts = [part.texts[place] for place in part.places]
    if len(questions) < len(part.questions) and task.submission_questions is None:
        raise UserError(
            f"The server takes answers to all {len(part.questions)} questions, but --limit or --part leaves "
            f"{len(questions)}. Leave out the option, or submit empty answers for the rest with --submission_questions."
        )
    if task.submission_questions is not None:
        file = task.submission_questions
        given = {str(question.id): text for question, text in zip(questions, texts, strict=True)}
        questions = task.benchmark.load_questions(file, None)
        unknown = given.keys() - {str(question.id) for question in questions}
        if unknown:
            raise UserError(f"{file} lacks {len(unknown)} of the questions that were asked, e.g. {min(unknown)!r}.")
        texts = [given.get(str(question.id), "") for question in questions]
    task.benchmark.write_submission(file, questions, texts, output)
    return f"{len(texts)} answers for the server: {output}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return build_parser().run(_run, argv)


if __name__ == "__main__":
    sys.exit(main())
