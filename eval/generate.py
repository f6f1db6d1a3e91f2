"""`python -m eval.generate BENCHMARK --model DIR --answers out.jsonl`: a model's answers to a benchmark.

Every question is answered by greedy generation until the model ends its turn. The answers file is in LLaVA's format; a
run that was killed goes on where it was when started again.
"""

import argparse
import hashlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from eval.answering import Answerer
from eval.answers import Answer, open_log
from eval.benchmarks import BENCHMARKS, find_benchmark
from eval.protocol import Question
from sparse_vlm.data.images import open_image
from sparse_vlm.errors import UserError, exit_with_sentence, one_line
from sparse_vlm.vlm.build import load_vlm

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
IMAGES_PER_CHUNK = 48  # whose prefixes are held in memory together


def generate_answers(
    questions: Sequence[Question],
    answers: Path,
    answerer: Answerer,
    *,
    model_id: str,
    with_images: bool = True,
) -> None:
    """Answers all questions into an answers file, or those that the file does not answer yet.

    Equal questions about the same picture are asked once and the answer counts for each.

    Args:
        questions: of the benchmark.
        answers: the file, .jsonl.
        answerer: the model.
        model_id: name of the model, written into every line.
        with_images: False asks without the pictures (the no-image floor).

    Raises:
        UserError: an image is missing or damaged, or the file holds answers that do not belong here (`open_log`).
    """
    metadata = {"image": with_images, "weights": fingerprint(answerer.model)}
    with open_log(answers, questions, model_id, metadata) as log:
        pending = [question for question in questions if question.id not in log.done]
        with tqdm(total=len(questions), initial=len(log.done), desc=answers.stem, unit="question") as progress:
            for chunk in _chunks(pending, with_images):
                for batch in _answer_chunk(chunk, answerer):
                    log.append(
                        [Answer(question.id, question.text, text, model_id, metadata) for question, text in batch]
                    )
                    progress.update(len(batch))


def _chunks(questions: Iterable[Question], with_images: bool) -> Iterator[dict[Path | None, list[Question]]]:
    """Questions by picture, some pictures at a time; those about no picture together."""
    by_image: dict[Path | None, list[Question]] = {}
    for question in questions:
        by_image.setdefault(question.image if with_images else None, []).append(question)
    without = by_image.pop(None, None)
    if without is not None:
        yield {None: without}
    items = iter(by_image.items())
    while chunk := dict(islice(items, IMAGES_PER_CHUNK)):
        yield chunk


def _answer_chunk(chunk: dict[Path | None, list[Question]], answerer: Answerer) -> Iterator[list[tuple[Question, str]]]:
    """(question, answer) pairs, batch by batch."""
    images: list[Image.Image] = [open_image(path) for path in chunk if path is not None]
    same: dict[tuple[int, str], list[Question]] = {}
    for index, questions in enumerate(chunk.values()):
        for question in questions:
            same.setdefault((index, question.text), []).append(question)
    groups = list(same.values())
    for batch in answerer.answer(images, list(same)):
        yield [(question, text) for index, text in batch for question in groups[index]]


def fingerprint(model: torch.nn.Module) -> str:
    """16 hexadecimal digits that change with training: a hash of 64 values of every weight."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        values = weight.flatten()
        digest.update(name.encode())
        digest.update(values[:: max(1, len(values) // 64)][:64].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def build_parser() -> argparse.ArgumentParser:
    """The arguments of `python -m eval.generate`."""
    parser = argparse.ArgumentParser(prog="python -m eval.generate", description="A model's answers to a benchmark.")
    parser.add_argument("benchmark", help=", ".join(BENCHMARKS))
    parser.add_argument("--model", type=Path, required=True, help="model directory")
    parser.add_argument("--answers", type=Path, required=True, help="the .jsonl file to write or to go on with")
    parser.add_argument("--questions", type=Path, help="the benchmark's official question file")
    parser.add_argument("--images", type=Path, help="folder of its images")
    parser.add_argument("--no-image", action="store_true", help="ask without the images: the no-image floor")
    parser.add_argument("--batch-rows", type=int, default=96, help="questions generated for together")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser


def _run(arguments: argparse.Namespace) -> None:
    benchmark = find_benchmark(arguments.benchmark)
    questions = benchmark.load_questions(arguments.questions, arguments.images)
    model, processor = load_vlm(arguments.model, DTYPES[arguments.dtype])
    try:
        model.to(arguments.device)
    except RuntimeError as error:
        raise UserError(f"Cannot use the device {arguments.device!r}: {one_line(error)}") from None
    answerer = Answerer(model, processor, benchmark.MAX_NEW_TOKENS, arguments.batch_rows)
    generate_answers(
        questions,
        arguments.answers,
        answerer,
        model_id=arguments.model.resolve().name,
        with_images=not arguments.no_image,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    arguments = build_parser().parse_args(argv)
    return exit_with_sentence(lambda: _run(arguments))


if __name__ == "__main__":
    sys.exit(main())
