"""Accuracy on questions about small objects: few visual tokens, a closer look at a box, or many tokens.

    python -m train.quickstart.small_shapes --output_dir runs/small_shapes
    python -m eval.closer_look --model DIR --questions runs/small_shapes/test.json --images runs/small_shapes/test \\
        --output closer_look.json

Every question is asked in three ways: in words with few tokens of the whole image, with as many tokens and a region,
and in words with many tokens. An answer counts if it has the words of the right one. The file of questions is a JSON
list of objects: "image" (the name of a file), "in_words" ("what color is the small circle?"), "in_region" ("what color
is the small shape in <region>?"), "box" ([x1, y1, x2, y2] in image coordinates) and "answer".
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from tqdm import tqdm

from eval.benchmarks.easy_vqa import exact_match
from eval.generate_arguments import check_images
from eval.intervals import bootstrap_interval, mean_score
from eval.scoring.protocol import Question
from eval.tables import rich_table
from sparse_vlm.command_line import CommandParser, add_device_arguments
from sparse_vlm.devices import choose_device, choose_dtype
from sparse_vlm.dtypes import name_of
from sparse_vlm.encoder.rois import check_box
from sparse_vlm.errors import UserError
from sparse_vlm.files import check_output_files, read_json, write_json
from sparse_vlm.image_files import open_image
from sparse_vlm.measure.timing import require_positive
from sparse_vlm.vlm.decoding import GREEDY
from sparse_vlm.vlm.language.control_tokens import IMAGE_TOKEN, REGION_TOKEN
from sparse_vlm.vlm.loading import load_vlm
from sparse_vlm.vlm.modeling import SparseVLMForConditionalGeneration
from sparse_vlm.vlm.processing import SparseVLMProcessor
from sparse_vlm.vlm.views import Box

MAX_NEW_TOKENS = 8


@dataclass(frozen=True)
class SmallQuestion:
    """A question about a small object, in two wordings.

    Attributes:
        image: file of the image.
        in_words: the question without a region.
        in_region: the question with `<region>`.
        box: the region, in image coordinates.
        answer: the answer.
    """

    image: Path
    in_words: str
    in_region: str
    box: Box
    answer: str


@dataclass(frozen=True)
class Way:
    """How the questions are asked: the visual tokens of the whole image, and of the region (0: in words)."""

    image_tokens: int
    region_tokens: int = 0

    @property
    def name(self) -> str:
        """For example "16" or "16 + 9 in the region"."""
        return f"{self.image_tokens}" + (f" + {self.region_tokens} in the region" if self.region_tokens else "")


def read_small_questions(file: Path, images: Path) -> list[SmallQuestion]:
    """Read the questions of `file` about images in the folder `images`.

    Raises:
        UserError: a malformed question, or a missing image.
    """
    records = read_json(file)
    if not isinstance(records, list) or not records:
        raise UserError(f"{file} must hold a non-empty list of questions.")
    questions = [_parse(record, f"{file}, question {index}", images) for index, record in enumerate(records)]
    places = range(len(questions))
    check_images([Question(place, questions[place].in_words, questions[place].image) for place in places], places)
    return questions


def _parse(record: Any, place: str, images: Path) -> SmallQuestion:
    if not isinstance(record, dict):
        raise UserError(f"{place} must be an object, not {record!r:.80}.")
    words = [record.get(name) for name in ("image", "in_words", "in_region", "answer")]
    for name, value in zip(("image", "in_words", "in_region", "answer"), words, strict=True):
        if not isinstance(value, str) or not value.strip():
            raise UserError(f'{place}: "{name}" must be a text, got {value!r:.80}.')
    image, in_words, in_region, answer = map(str, words)
    if REGION_TOKEN in in_words or in_region.count(REGION_TOKEN) != 1:
        raise UserError(f'{place}: "in_region" must have one {REGION_TOKEN}, and "in_words" none.')
    box = record.get("box")
    if not isinstance(box, list):
        raise UserError(f'{place}: "box" must be [x1, y1, x2, y2], got {box!r:.80}.')
    try:
        check_box(box)
    except UserError as error:
        raise UserError(f"{place}: {error}") from None
    return SmallQuestion(images / image, in_words, in_region, tuple(box), answer)


@torch.inference_mode()
def ask(
    model: SparseVLMForConditionalGeneration,
    processor: SparseVLMProcessor,
    questions: Sequence[SmallQuestion],
    way: Way,
    batch_size: int = 32,
) -> list[str]:
    """Answer all questions in one way, greedily.

    Args:
        model, processor: returned by `load_vlm`. The processor's `region_tokens` must be the way's.
        questions: the questions.
        way: how to ask.
        batch_size: questions computed together. They have the same words, so that no language model needs padding.
    """
    generator: Any = model  # transformers' annotations of generate do not fit its own Llava classes
    answers = [""] * len(questions)
    progress = tqdm(total=len(questions), desc=way.name, mininterval=5)
    for text, members in _batches(questions, way, batch_size):
        inputs = processor(
            text=[_prompt(processor, text)] * len(members),
            images=[open_image(questions[index].image) for index in members],
            visual_tokens=way.image_tokens,
            regions=[questions[index].box for index in members] if way.region_tokens else None,
            return_tensors="pt",
        ).to(model.device, model.dtype)
        pad = processor.tokenizer.pad_token_id
        ids = generator.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, pad_token_id=pad, **GREEDY)
        new = ids[:, inputs["input_ids"].shape[1] :]
        for index, answer in zip(members, processor.batch_decode(new, skip_special_tokens=True), strict=True):
            answers[index] = answer.strip()
        progress.update(len(members))
    progress.close()
    return answers


def _batches(questions: Sequence[SmallQuestion], way: Way, size: int) -> Iterator[tuple[str, list[int]]]:
    """Yield texts, each with the indices of at most `size` questions that have it."""
    same: dict[str, list[int]] = {}
    for index, question in enumerate(questions):
        same.setdefault(question.in_region if way.region_tokens else question.in_words, []).append(index)
    for text, members in same.items():
        for start in range(0, len(members), size):
            yield text, members[start : start + size]


def _prompt(processor: SparseVLMProcessor, question: str) -> str:
    """Render the first turn of a conversation as in training: the image, a line break, and the question."""
    turns: Any = [{"role": "user", "content": f"{IMAGE_TOKEN}\n{question}"}]
    return processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)


def score(questions: Sequence[SmallQuestion], answers: dict[Way, list[str]]) -> dict[str, Any]:
    """Compute the accuracy of each way, and its difference from the first way.

    Args:
        questions: the questions.
        answers: the answers in each way.

    Returns:
        "questions", "images", "most_frequent_answer" (the share of it), and "ways": for each "name", "visual_tokens",
        "accuracy", "difference" and their 95% intervals, by bootstrap over images.
    """
    groups = [str(question.image) for question in questions]
    right = {
        way: [float(exact_match(text, q.answer)) for text, q in zip(texts, questions, strict=True)]
        for way, texts in answers.items()
    }
    first = next(iter(right.values()))
    ways = []
    for way, values in right.items():
        accuracy = mean_score(values, groups)
        differences = [value - other for value, other in zip(values, first, strict=True)]
        ways.append(
            {
                "name": way.name,
                "visual_tokens": way.image_tokens + way.region_tokens,
                "accuracy": accuracy.value,
                "accuracy_95": list(accuracy.interval),
                "difference": sum(differences) / len(differences),
                "difference_95": list(bootstrap_interval(differences, groups)),
            }
        )
    frequent = Counter(question.answer for question in questions).most_common(1)[0][1]
    return {
        "questions": len(questions),
        "images": len(set(groups)),
        "most_frequent_answer": frequent / len(questions),
        "ways": ways,
    }


def table_rows(result: dict[str, Any]) -> list[list[str]]:
    """Format the result of `score` as rows of text, the heading first."""
    rows = [["visual tokens", "tokens per question", "accuracy", "95% interval", "difference", "95% interval"]]
    for way in result["ways"]:
        accuracy, difference = (
            [f"{way[name]:{sign}.1%}", " – ".join(f"{side:{sign}.1%}" for side in way[f"{name}_95"])]
            for name, sign in (("accuracy", ""), ("difference", "+"))
        )
        rows.append([way["name"], str(way["visual_tokens"]), *accuracy, *difference])
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, evaluate, and return the exit status."""
    parser = CommandParser.of_module("eval.closer_look", __doc__)
    parser.add_argument("--model", type=Path, required=True, help="model directory")
    parser.add_argument("--questions", type=Path, required=True, help="JSON file of questions")
    parser.add_argument("--images", type=Path, required=True, help="folder of their images")
    parser.add_argument("--visual_tokens", type=int, help="few tokens of the whole image (default: the model's own)")
    parser.add_argument("--region_tokens", type=int, help="tokens of a region (default: the model's own)")
    parser.add_argument("--many_tokens", type=int, default=64, help="many tokens of the whole image (default: 64)")
    parser.add_argument("--limit", type=int, help="ask only the first questions, this many")
    parser.add_argument("--batch_size", type=int, default=32, help="questions computed together (default: 32)")
    add_device_arguments(parser)
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write, with all answers")
    return parser.run(_run, argv)


def _run(arguments: argparse.Namespace) -> None:
    check_output_files({"--output": arguments.output}, [arguments.model, arguments.questions, arguments.images])
    names = ("visual_tokens", "region_tokens", "many_tokens", "limit", "batch_size")
    given = {name: getattr(arguments, name) for name in names}
    require_positive(**{name: value for name, value in given.items() if value is not None})
    device = choose_device(arguments.device)
    questions = read_small_questions(arguments.questions, arguments.images)[: arguments.limit]
    model, processor = load_vlm(arguments.model, choose_dtype(arguments.dtype, device))
    model.to(device)  # type: ignore[arg-type]  # transformers' annotation of `to` accepts no device
    processor.region_tokens = arguments.region_tokens or processor.region_tokens
    few = arguments.visual_tokens or processor.num_image_tokens
    ways = [Way(few), Way(few, processor.region_tokens), Way(arguments.many_tokens)]
    answers = {way: ask(model, processor, questions, way, arguments.batch_size) for way in ways}
    result = score(questions, answers)
    texts = {way.name: texts for way, texts in answers.items()}
    about = {"model": str(arguments.model), "dtype": name_of(model.dtype)}
    write_json(arguments.output, {**about, **result, "answers": texts})
    note = f"{result['questions']} questions about {result['images']} images; differences from the first row"
    Console().print(rich_table(table_rows(result), "", note))


if __name__ == "__main__":
    sys.exit(main())
