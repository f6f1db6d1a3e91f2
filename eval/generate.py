"""`python -m eval.generate BENCHMARK --model DIR --answers out.jsonl`: a model's answers to a benchmark.

Every question is answered by greedy generation until the model ends its turn. The answers file is in LLaVA's format; a
run that was killed goes on where it was when started again. Several processes, on several devices, share the work when
the same command is started several times: they claim parts of the questions and write one file.
"""

import argparse
import hashlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from eval.answer_log import AnswerLog, open_log
from eval.benchmarks import BENCHMARKS, find_benchmark
from eval.protocol import EncodedImage, Question
from sparse_vlm.data.images import decode_image, open_image
from sparse_vlm.device_arguments import add_device_arguments
from sparse_vlm.devices import choose_device, choose_dtype
from sparse_vlm.dtypes import name_of
from sparse_vlm.errors import exit_with_sentence
from sparse_vlm.vlm.answering import Answerer
from sparse_vlm.vlm.build import load_vlm

IMAGES_PER_PART = 48  # whose prefixes are held in memory together
TEXTS_PER_PART = 480  # different questions about no picture
Part = dict[Path | EncodedImage | None, list[int]]  # picture -> indices of the questions about it


def generate_answers(
    questions: Sequence[Question],
    answers: Path,
    answerer: Answerer,
    *,
    model_id: str,
    with_images: bool = True,
) -> None:
    """Answers all questions into an answers file, or those that the file does not answer yet.

    Equal questions about the same picture are asked once and the answer counts for each. Several processes may do this
    with the same file at the same time.

    Args:
        questions: of the benchmark.
        answers: the file, .jsonl.
        answerer: the model.
        model_id: name of the model, written into every line.
        with_images: False asks without the pictures (the no-image floor).

    Raises:
        UserError: an image is missing or damaged, or the file holds answers that do not belong here (`open_log`).
    """
    tokens = answerer.model.config.image_seq_length if with_images else 0
    model = answerer.model
    metadata = {"image": with_images, "visual_tokens": tokens, "weights": fingerprint(model)}
    metadata |= {"device": model.device.type, "dtype": name_of(model.dtype)}
    parts = list(_parts(questions, with_images))
    with (
        open_log(answers, questions, model_id, metadata) as log,
        tqdm(total=len(questions), initial=len(log.done), desc=answers.stem, unit="question") as progress,
    ):
        went_on = True
        while went_on:  # then once more, for parts that another process had claimed and left
            went_on = False
            for number, part in enumerate(parts):
                went_on |= _answer_part(number, part, questions, answerer, log, progress)
        if len(log.done) < len(questions):
            print(f"{answers}: other processes are answering the last {len(questions) - len(log.done)} questions.")


def _parts(questions: Sequence[Question], with_images: bool) -> Iterator[Part]:
    """The questions by picture, some pictures at a time; of those about no picture equal ones are together."""
    by_image: Part = {}
    by_text: dict[str, list[int]] = {}
    for index, question in enumerate(questions):
        if with_images and question.image is not None:
            by_image.setdefault(question.image, []).append(index)
        else:
            by_text.setdefault(question.text, []).append(index)
    texts, images = list(by_text.values()), list(by_image.items())
    for start in range(0, len(texts), TEXTS_PER_PART):
        yield {None: [index for same in texts[start : start + TEXTS_PER_PART] for index in same]}
    for start in range(0, len(images), IMAGES_PER_PART):
        yield dict(images[start : start + IMAGES_PER_PART])


def _answer_part(
    number: int, part: Part, questions: Sequence[Question], answerer: Answerer, log: AnswerLog, progress: "tqdm[Any]"
) -> bool:
    """Answers what is pending in a part; False if there is nothing, or another process is at it."""
    with log.claim(number, [index for members in part.values() for index in members]) as pending:
        if pending:
            left = {image: [i for i in members if i in set(pending)] for image, members in part.items()}
            left = {image: members for image, members in left.items() if members}
            for batch in _answer_batches(left, questions, answerer):
                log.append(batch)
                progress.update(len(log.done) - progress.n)
    return bool(pending)


def _answer_batches(part: Part, questions: Sequence[Question], answerer: Answerer) -> Iterator[list[tuple[int, str]]]:
    """(index of the question, answer) pairs, batch by batch."""
    images = None if None in part else (_open(image) for image in part if image is not None)
    same: dict[tuple[int, str], list[int]] = {}
    for place, members in enumerate(part.values()):
        for index in members:
            same.setdefault((place, questions[index].text), []).append(index)
    groups = list(same.values())
    for batch in answerer.answer(images, list(same)):
        yield [(index, text) for row, text in batch for index in groups[row]]


def _open(image: Path | EncodedImage) -> Image.Image:
    return decode_image(image.data, image.name) if isinstance(image, EncodedImage) else open_image(image)


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
    add_device_arguments(parser)
    return parser


def _run(arguments: argparse.Namespace) -> None:
    device = choose_device(arguments.device)
    benchmark = find_benchmark(arguments.benchmark)
    questions = benchmark.load_questions(arguments.questions, arguments.images)
    model, processor = load_vlm(arguments.model, choose_dtype(arguments.dtype, device))
    model.to(device)  # type: ignore[arg-type]  # transformers' own annotation of `to` fits no device
    answerer = Answerer(model, processor, benchmark.max_new_tokens, arguments.batch_rows)
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
