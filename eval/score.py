"""`python -m eval.score BENCHMARK --answers out.jsonl`: scores of any model's answers in LLaVA's format.

Every question must be answered exactly once; otherwise the exit status is 2 and one sentence says what is wrong.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from eval.benchmarks import BENCHMARKS
from eval.report import as_markdown, as_table, make_report
from sparse_vlm.errors import exit_with_sentence
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
    return parser


def _run(arguments: argparse.Namespace) -> None:
    report = make_report(
        arguments.benchmark,
        arguments.answers,
        questions=arguments.questions,
        annotations=arguments.annotations,
        no_image_answers=arguments.no_image_answers,
    )
    Console().print(as_table(report))
    if arguments.output is not None:
        write_json(arguments.output, report)
        write_text(arguments.output.with_suffix(".md"), as_markdown(report))


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    arguments = build_parser().parse_args(argv)
    return exit_with_sentence(lambda: _run(arguments))


if __name__ == "__main__":
    sys.exit(main())
