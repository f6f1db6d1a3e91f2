"""Generate a model's answers to one or several benchmarks.

    python -m eval.generate pope --model DIR --questions llava_pope_test.jsonl --images val2014 --answers pope.jsonl
    python -m eval.generate easy_vqa --model DIR --answers easy_vqa.jsonl --no_image
    python -m eval.generate easy_vqa --model DIR --answers easy_vqa_16.jsonl --visual_tokens 16
    python -m eval.generate next_qa --model DIR --questions val.csv --videos NExTVideo --answers next_qa.jsonl

Every question is answered until the model ends its turn, greedily by default. The answers file is in LLaVA's format. A
killed run resumes when the same command is started again. Started several times, on one or several devices, the command
shares the work: the processes claim parts of the questions and write one file.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from eval.answer_log import AnswerLog, open_log
from eval.benchmarks.videos.clips import count_frames, read_clip
from eval.generate_arguments import IMAGES_PER_PART, Task, add_arguments, read_tasks, video_options
from eval.scoring.protocol import EncodedImage, Question, Video
from sparse_vlm.command_line import CommandParser
from sparse_vlm.devices import choose_device, choose_dtype
from sparse_vlm.dtypes import name_of
from sparse_vlm.errors import UserError, error_context
from sparse_vlm.fingerprint import fingerprint
from sparse_vlm.image_files import decode_image, open_image
from sparse_vlm.model_directory import short_name
from sparse_vlm.vlm.answering import Answerer
from sparse_vlm.vlm.decoding import Decoding
from sparse_vlm.vlm.loading import load_vlm
from sparse_vlm.vlm.towers import use_cuda_graphs
from sparse_vlm.vlm.videos.answering import VideoAnswerer

TEXTS_PER_PART = 480  # as IMAGES_PER_PART: different questions without an image
Medium = Path | EncodedImage | Video
Part = dict[Medium | None, list[int]]  # image or video -> indices of the questions about it


def generate_answers(
    questions: Sequence[Question],
    answers: Path,
    answerer: Answerer,
    *,
    model_id: str,
    with_images: bool = True,
    places: Sequence[int] | None = None,
    seed: int = 0,
    name: str = "",
    images_in_memory: int = IMAGES_PER_PART,
) -> None:
    """Answer the questions that an answers file does not answer yet, and append the answers to it.

    Equal questions about the same image are asked once, and the answer counts for each. Several processes may write the
    same file at the same time.

    Args:
        questions: the benchmark's questions.
        answers: the .jsonl file.
        answerer: the model; a VideoAnswerer if the questions are about videos.
        model_id: name of the model, written into every line.
        with_images: False asks without the images (the no-image floor).
        places: indices of the questions to answer; None: all.
        seed: seed of sampling; the number of the part is added to it.
        name: name of the progress bar; by default, that of the file.
        images_in_memory: maximum number of images whose prefixes are held in memory together.

    Raises:
        UserError: an image is missing or damaged, or the file holds other answers (`open_log`).
    """
    tokens = _tokens(answerer) if with_images else 0
    model = answerer.model
    metadata = {"image": with_images, "visual_tokens": tokens, "weights": fingerprint(model)}
    metadata |= {"device": model.device.type, "dtype": name_of(model.dtype)}
    metadata |= _generation(answerer, seed, with_images)
    total = len(questions if places is None else places)
    parts = list(_parts(questions, with_images))  # parts of all questions, so that every process numbers them alike
    with (
        open_log(answers, questions, model_id, metadata, places) as log,
        tqdm(total=total, initial=total - len(log.open), desc=name or answers.stem, unit="question") as progress,
    ):
        progressed = True
        while progressed:  # ends after a round without progress: parts left by other processes are claimed, too
            progressed = False
            for number, part in enumerate(parts):
                if answerer.decoding.temperature:
                    torch.manual_seed(seed + number)
                for batch in _answer_part(number, part, questions, answerer, log, images_in_memory):
                    progressed = True
                    log.append(batch)
                    progress.update(total - len(log.open) - progress.n)
        if log.open:
            print(f"{answers}: other processes are answering the remaining {len(log.open)} questions.")
        print(f"Answers: {answers} ({len(log.done)} of {len(questions)} questions)")


def _tokens(answerer: Answerer) -> int:
    """Return the number of visual tokens of each image, or of each frame of a video."""
    return answerer.tokens_per_frame if isinstance(answerer, VideoAnswerer) else answerer.tokens_per_image


def _generation(answerer: Answerer, seed: int, with_images: bool) -> dict[str, Any]:
    """Return the generation settings that differ from the defaults, for the answers' metadata."""
    decoding = answerer.decoding
    settings: dict[str, Any] = {}
    if decoding.temperature:
        settings |= {"temperature": decoding.temperature, "top_p": decoding.top_p, "seed": seed}
    if decoding.beams > 1:
        settings["num_beams"] = decoding.beams
    if answerer.system is not None:
        settings["system"] = answerer.system
    if isinstance(answerer, VideoAnswerer) and with_images:
        settings |= asdict(answerer.sampling)
        if answerer.video_options.timestamps:
            settings["timestamps"] = True
    return {"generation": {"max_new_tokens": answerer.max_new_tokens, **settings}}


def _parts(questions: Sequence[Question], with_images: bool) -> Iterator[Part]:
    """Divide the questions by image, a few images per part; equal questions without an image are in the same part."""
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
    number: int, part: Part, questions: Sequence[Question], answerer: Answerer, log: AnswerLog, images_in_memory: int
) -> Iterator[list[tuple[int, str]]]:
    """Yield batches of (index of the question, answer) pairs for the unanswered questions of a part.

    Yields nothing if another process has claimed the part.
    """
    with log.claim(number, [index for members in part.values() for index in members]) as pending:
        waiting = set(pending)
        left = [(image, [index for index in members if index in waiting]) for image, members in part.items()]
        left = [(image, members) for image, members in left if members]
        for medium, members in left:
            if isinstance(medium, Video):
                yield from _answer_video(medium, members, questions, answerer)
        left = [(medium, members) for medium, members in left if not isinstance(medium, Video)]
        together = min(answerer.batch_rows, images_in_memory)
        for start in range(0, len(left), together):
            yield from _answer_batches(dict(left[start : start + together]), questions, answerer)


def _answer_video(
    video: Video, members: Sequence[int], questions: Sequence[Question], answerer: Answerer
) -> Iterator[list[tuple[int, str]]]:
    """Yield batches of (index of the question, answer) pairs about one video."""
    assert isinstance(answerer, VideoAnswerer)
    same: dict[str, list[int]] = {}
    for index in members:
        same.setdefault(questions[index].text, []).append(index)
    groups = list(same.values())
    for batch in answerer.answer_video(read_clip(video, answerer), list(same)):
        yield [(index, text) for row, text in batch for index in groups[row]]


def _answer_batches(part: Part, questions: Sequence[Question], answerer: Answerer) -> Iterator[list[tuple[int, str]]]:
    """Yield batches of (index of the question, answer) pairs."""
    images = None if None in part else (_open(image) for image in part)
    same: dict[tuple[int, str], list[int]] = {}
    for place, members in enumerate(part.values()):
        for index in members:
            same.setdefault((place, questions[index].text), []).append(index)
    groups = list(same.values())
    for batch in answerer.answer(images, list(same)):
        yield [(index, text) for row, text in batch for index in groups[row]]


def _open(image: Medium | None) -> Image.Image:
    if isinstance(image, EncodedImage):
        return decode_image(image.data, image.name)
    assert isinstance(image, Path)
    return open_image(image)


def _check_lengths(task: Task, answerer: Answerer, with_images: bool) -> None:
    frames = cache(count_frames)
    for place in task.places:
        question = task.questions[place]
        with error_context(f"Question id {question.id!r}"):
            if with_images and isinstance(question.image, Video):
                assert isinstance(answerer, VideoAnswerer)
                if not _fits(answerer, question.text):
                    answerer.check_video_length(frames(question.image, answerer), question.text)
            else:
                answerer.check_length(with_images and question.image is not None, question.text)


def _fits(answerer: VideoAnswerer, text: str) -> bool:
    """Return whether a question fits into the model with as many frames as a video may have, without opening it."""
    most = answerer.sampling.max_frames
    if most is None:
        return False
    try:
        answerer.check_video_length(most, text)
    except UserError:
        return False
    return True


def _run(arguments: argparse.Namespace) -> None:
    device = choose_device(arguments.device)
    decoding = Decoding(arguments.temperature, arguments.top_p, arguments.num_beams)
    if arguments.max_new_tokens is not None and arguments.max_new_tokens < 1:
        raise UserError(f"--max_new_tokens must be 1 or more, got {arguments.max_new_tokens}.")
    if arguments.images_in_memory < 1:
        raise UserError(f"--images_in_memory must be 1 or more, got {arguments.images_in_memory}.")
    tasks = read_tasks(arguments)
    model, processor = load_vlm(arguments.model, choose_dtype(arguments.dtype, device))
    model.to(device)  # type: ignore[arg-type]  # transformers' annotation of `to` accepts no device
    if arguments.cuda_graphs:
        use_cuda_graphs(model)
    answerers: list[Answerer] = []
    how: dict[str, Any] = {"decoding": decoding, "system": arguments.system}
    for task in tasks:
        limit = arguments.max_new_tokens or task.benchmark.max_new_tokens
        rows = arguments.batch_size
        if task.benchmark.medium == "video":
            shown = video_options(arguments)
            answerers.append(VideoAnswerer(model, processor, limit, rows, video_options=shown, **how))
        else:
            answerers.append(Answerer(model, processor, limit, rows, visual_tokens=arguments.visual_tokens, **how))
    for task, answerer in zip(tasks, answerers, strict=True):
        _check_lengths(task, answerer, not arguments.no_image)
    for task, answerer in zip(tasks, answerers, strict=True):
        generate_answers(
            task.questions,
            task.answers,
            answerer,
            model_id=short_name(arguments.model),
            with_images=not arguments.no_image,
            places=task.places,
            seed=arguments.seed,
            name=task.name,
            images_in_memory=arguments.images_in_memory,
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = CommandParser.of_module("eval.generate", __doc__)
    add_arguments(parser)
    return parser.run(_run, argv)


if __name__ == "__main__":
    sys.exit(main())
