"""Speed and memory of answers: questions one at a time, as in `sparse-vlm chat`, and in batches, as in `eval.generate`.

    python -m eval.cost.answering --model runs/quickstart/model
    python -m eval.cost.answering --model runs/quickstart/model --llm tinyllama-1.1b --visual_tokens 576 --new_tokens 16

Every answer has exactly --new_tokens tokens, since tokens that end it are ignored. With --llm, a language model of that
shape with random weights replaces the directory's. Writes FILE.json, FILE.md and FILE.png.
"""

import argparse
import copy
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from transformers import AutoModelForImageTextToText, LlamaConfig

from eval.benchmarks import easy_vqa
from eval.cost.arguments import add_arguments, add_repeats, begin
from eval.cost.report import Section, megabytes, publish
from sparse_vlm.command_line import CommandParser
from sparse_vlm.devices import peak_bytes
from sparse_vlm.dtypes import DTYPES
from sparse_vlm.errors import UserError, unknown_choice
from sparse_vlm.image_files import open_image
from sparse_vlm.measure.shapes import SHAPES
from sparse_vlm.measure.timing import machine, require_positive, take_turns
from sparse_vlm.vlm.answering import Answerer
from sparse_vlm.vlm.chat import answer
from sparse_vlm.vlm.loading import load_vlm
from sparse_vlm.vlm.modeling import SparseVLMForConditionalGeneration

ALONE = 4  # questions that are asked one at a time


@dataclass(frozen=True)
class Speed:
    """Cost of answering.

    Attributes:
        how: "one at a time" or "in batches".
        questions: number of questions.
        seconds: seconds of every recorded run over all of them.
        peak_bytes: peak memory of a run beyond the weights.
    """

    how: str
    questions: int
    seconds: list[float]
    peak_bytes: int

    @property
    def rate(self) -> float:
        """Median number of questions per second."""
        return self.questions / statistics.median(self.seconds)


def replace_llm(model: SparseVLMForConditionalGeneration, shape: str) -> SparseVLMForConditionalGeneration:
    """Return a model with the same vision tower and vocabulary, and a Llama of `shape` with random weights."""
    if shape not in SHAPES:
        raise unknown_choice("LLM", shape, SHAPES)
    config = copy.deepcopy(model.config)
    text: Any = config.get_text_config()
    special = {name: getattr(text, name) for name in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")}
    config.text_config = LlamaConfig(**(SHAPES[shape] | special))
    made = AutoModelForImageTextToText.from_config(config, dtype=model.dtype).eval()
    made.model.vision_tower = model.model.vision_tower
    return made


def measure(answerer: Answerer, images: int, each: int, repeats: int) -> list[Speed]:
    """Time questions of easy-VQA one at a time and in batches, in turns.

    Args:
        answerer: the model and the settings.
        images: number of images.
        each: number of questions about each.
        repeats: recorded runs.

    Raises:
        UserError: easy-VQA has fewer such images.
    """
    model, processor = answerer.model, answerer.processor
    by_image: dict[Path, list[str]] = {}
    for question in easy_vqa.load_questions(None, None):
        assert isinstance(question.image, Path)
        by_image.setdefault(question.image, []).append(question.text)
    chosen = [path for path, texts in by_image.items() if len(texts) >= each][:images]
    if len(chosen) < images:
        raise UserError(f"Only {len(chosen)} images of easy-VQA have {each} questions: ask for fewer.")
    opened = [open_image(path) for path in chosen]
    asked = [(place, text) for place, path in enumerate(chosen) for text in by_image[path][:each]]

    def one_at_a_time() -> None:
        for place, text in asked[:ALONE]:
            count = answerer.visual_tokens
            answer(model, processor, opened[place], text, answerer.max_new_tokens, visual_tokens=count)

    def in_batches() -> None:
        for _ in answerer.answer(opened, asked):
            pass

    runs = {"one at a time": (one_at_a_time, len(asked[:ALONE])), "in batches": (in_batches, len(asked))}
    seconds = take_turns([run for run, _ in runs.values()], repeats, model.device)
    return [
        Speed(how, count, times, peak_bytes(run, model.device))
        for (how, (run, count)), times in zip(runs.items(), seconds, strict=True)
    ]


def section_of(speeds: Sequence[Speed], new_tokens: int, title: str) -> Section:
    """Tabulate medians."""
    rows = [["questions", "asked", "questions/s", "new tokens/s", "memory, MB"]]
    for speed in speeds:
        rates = f"{speed.rate:.2f}", f"{new_tokens * speed.rate:.1f}"
        rows.append([speed.how, str(speed.questions), *rates, megabytes(speed.peak_bytes)])
    return Section(title, rows)


def figure_of(speeds: Sequence[Speed], title: str) -> Figure:
    """Draw a bar of questions per second for each way to ask."""
    figure = Figure(figsize=(7, 2), layout="constrained")
    axes = figure.subplots()
    axes.barh([speed.how for speed in speeds], [speed.rate for speed in speeds])
    axes.set(xlabel="questions per second")
    axes.set_title(title, fontsize=7)
    return figure


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, measure, and return the exit status."""
    parser = CommandParser.of_module("eval.cost.answering", __doc__)
    parser.add_argument("--model", type=Path, required=True, help="model directory")
    parser.add_argument("--llm", help=f"shape of a random language model instead of its own: {', '.join(SHAPES)}")
    parser.add_argument("--visual_tokens", type=int, help="visual tokens of each image (default: the model's own)")
    parser.add_argument("--new_tokens", type=int, default=2, help="tokens of each answer (default: 2)")
    parser.add_argument("--images", type=int, default=48, help="number of images (default: 48)")
    parser.add_argument("--questions_per_image", type=int, default=8, help="questions about each (default: 8)")
    parser.add_argument("--batch_size", type=int, default=96, help="questions of a batch (default: 96)")
    add_repeats(parser, 3)
    add_arguments(parser, output="runs/bench/answering.json")
    return parser.run(_run, argv)


def _run(arguments: argparse.Namespace) -> None:
    sizes = {name: getattr(arguments, name) for name in ("new_tokens", "images", "questions_per_image", "repeats")}
    require_positive(**sizes)
    device, setting = begin(arguments, arguments.batch_size, inputs=[arguments.model])
    model, processor = load_vlm(arguments.model, DTYPES[setting.dtype])
    if arguments.llm is not None:
        model = replace_llm(model, arguments.llm)
    model.to(device)  # type: ignore[arg-type]  # transformers' annotation of `to` accepts no device
    model.generation_config.eos_token_id = None
    count = arguments.visual_tokens
    answerer = Answerer(model, processor, arguments.new_tokens, arguments.batch_size, visual_tokens=count)
    speeds = measure(answerer, arguments.images, arguments.questions_per_image, arguments.repeats)
    name = arguments.llm or arguments.model.name
    sizes |= {"visual_tokens": answerer.tokens_per_image}
    title = f"{name}, {', '.join(f'{number} {what}' for what, number in sizes.items())}, {setting}"
    values = {"machine": machine(device), "model": str(arguments.model), "llm": arguments.llm, **sizes}
    results = [asdict(speed) | {"questions_per_second": speed.rate} for speed in speeds]
    publish(
        arguments.output,
        values | asdict(setting) | {"results": results},
        [section_of(speeds, arguments.new_tokens, title)],
        figure_of(speeds, title),
    )


if __name__ == "__main__":
    sys.exit(main())
