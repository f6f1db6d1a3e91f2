"""Time to the first token of an answer: one image and one question of easy-VQA, batch 1.

    python -m eval.cost.first_token --models runs/quickstart/model runs/quickstart/dense/model
    python -m eval.cost.first_token --models DIR --visual_tokens 4,9,16,25,36,49,64
    python -m eval.cost.first_token --models DIR DIR --questions questions.json --images IMAGES --limit 20

Times what `generate` does before its first token; preparing the image and the text is not included. The models take
turns on every image, each with every number of visual tokens; a dense vision tower has only its own. Writes FILE.json
with every run, FILE.md and FILE.png.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from PIL import Image
from transformers import BatchFeature

from eval.benchmarks import easy_vqa
from eval.cost.arguments import add_arguments, begin
from eval.cost.report import Section, publish
from sparse_vlm.command_line import CommandParser
from sparse_vlm.dtypes import DTYPES
from sparse_vlm.encoder.token_counts import TokenCounts
from sparse_vlm.errors import UserError
from sparse_vlm.image_files import open_image
from sparse_vlm.measure.timing import clock, machine, turns
from sparse_vlm.vlm.chat import check_length, encode_prompt
from sparse_vlm.vlm.loading import load_vlm
from sparse_vlm.vlm.modeling import SparseVLMForConditionalGeneration
from sparse_vlm.vlm.processing import SparseVLMProcessor
from sparse_vlm.vlm.vision import SparseFormerVisionModel


class Seconds(NamedTuple):
    """Seconds until the first token, by part.

    Attributes:
        image_encoding: the vision tower.
        projector_and_prefill: the projector, and the LLM on the whole prompt.
        head: the LLM's output layer at the last position, and the choice of the token.
    """

    image_encoding: float
    projector_and_prefill: float
    head: float


@dataclass
class Measurement:
    """First tokens of one model.

    Attributes:
        model: directory of the model.
        visual_tokens: visual tokens of an image.
        prompt_tokens: tokens of each prompt, visual ones included.
        runs: times for each image.
    """

    model: str
    visual_tokens: int
    prompt_tokens: list[int] = field(default_factory=list)
    runs: list[Seconds] = field(default_factory=list)

    def medians(self) -> dict[str, float]:
        """Median seconds of each part, and of their sum as "first_token"."""
        parts = {name: [getattr(run, name) for run in self.runs] for name in Seconds._fields}
        parts["first_token"] = [sum(run) for run in self.runs]
        return {name: statistics.median(values) for name, values in parts.items()}

    def as_json(self) -> dict[str, Any]:
        """All values, with the medians."""
        return {
            "model": self.model,
            "visual_tokens": self.visual_tokens,
            "prompt_tokens": self.prompt_tokens,
            "median_seconds": self.medians(),
            "runs": [run._asdict() for run in self.runs],
        }


def time_first_token(model: SparseVLMForConditionalGeneration, inputs: BatchFeature) -> tuple[int, Seconds]:
    """Compute the most likely first token of the answer, and time it.

    Args:
        model: result of `load_vlm`.
        inputs: result of `encode_prompt` with an image, on the model's device.
    """
    body: Any = model.model
    ends: list[float] = []

    def end_part(*_: object) -> None:
        ends.append(clock(model.device))

    hooks = [
        body.multi_modal_projector.register_forward_pre_hook(end_part),
        body.language_model.register_forward_hook(end_part),
    ]
    try:
        with torch.inference_mode():
            start = clock(model.device)
            token = int(model(**inputs, use_cache=True, logits_to_keep=1).logits[0, -1].argmax())
            end = clock(model.device)
    finally:
        for hook in hooks:
            hook.remove()
    encoded, prefilled = ends
    return token, Seconds(encoded - start, prefilled - encoded, end - prefilled)


def measure(
    model_dirs: Sequence[Path],
    limit: int,
    questions_file: Path | None = None,
    images: Path | None = None,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    visual_tokens: Sequence[int] = (),
) -> list[Measurement]:
    """Time the first tokens of all models on the first `limit` images of easy-VQA, after one warm-up run each.

    Args:
        model_dirs: model directories.
        limit: number of images.
        questions_file, images: see `easy_vqa.load_questions`.
        device: where to compute.
        dtype: dtype of the models.
        visual_tokens: numbers of visual tokens of each model with a SparseFormer (default: its own). A dense vision
            tower has only its own.

    Raises:
        UserError: no model can have the numbers, or a prompt with so many is too long for its language model.
    """
    questions = {question.image: question for question in easy_vqa.load_questions(questions_file, images)}
    if not 1 <= limit <= len(questions):
        raise UserError(f"--limit must lie in 1…{len(questions)}, got {limit}.")
    asked = [(open_image(path), questions[path].text) for path in list(questions)[:limit] if isinstance(path, Path)]
    contestants = _open(model_dirs, visual_tokens, device, dtype)
    for contestant in contestants:
        time_first_token(contestant.model, contestant.encode(*asked[0]))
    for number, index in turns(len(contestants), len(asked)):
        contestant = contestants[index]
        inputs = contestant.encode(*asked[number])
        contestant.measurement.runs.append(time_first_token(contestant.model, inputs)[1])
        contestant.measurement.prompt_tokens.append(inputs["input_ids"].shape[1])
    return [contestant.measurement for contestant in contestants]


class Contestant(NamedTuple):
    """A model with a number of visual tokens; None: its own."""

    model: SparseVLMForConditionalGeneration
    processor: SparseVLMProcessor
    visual_tokens: int | None
    measurement: Measurement

    def encode(self, image: Image.Image, question: str) -> BatchFeature:
        """Encode a question as inputs on the model's device.

        Raises:
            UserError: it is too long for the language model.
        """
        inputs = encode_prompt(self.processor, image, question, visual_tokens=self.visual_tokens)
        name, count = self.measurement.model, self.measurement.visual_tokens
        asked = f"A question with {count} visual tokens"
        check_length(self.model, inputs["input_ids"].shape[1], 1, name, asked=asked, advice="Ask for fewer")
        return inputs.to(self.model.device)


def _open(
    model_dirs: Sequence[Path], visual_tokens: Sequence[int], device: torch.device | str, dtype: torch.dtype
) -> list[Contestant]:
    contestants = []
    for directory in model_dirs:
        model, processor = load_vlm(directory, dtype)
        model.to(device)  # type: ignore[arg-type]  # transformers' annotation of `to` accepts no device
        sparse = isinstance(model.model.vision_tower, SparseFormerVisionModel)
        for count in visual_tokens if visual_tokens and sparse else (None,):
            measurement = Measurement(str(directory), count or processor.num_image_tokens)
            contestants.append(Contestant(model, processor, count, measurement))
    if visual_tokens and all(contestant.visual_tokens is None for contestant in contestants):
        raise UserError("--visual_tokens needs a model with a SparseFormer: the number of a dense ViT is fixed.")
    return contestants


def section_of(measurements: Sequence[Measurement], title: str) -> Section:
    """Tabulate the medians; "× faster" is relative to the slowest model."""
    slowest = max(measurement.medians()["first_token"] for measurement in measurements)
    parts = ["image ms", "projector, prefill ms", "head ms", "first token ms"]
    rows = [["model", "visual tokens", *parts, "× faster"]]
    for measurement in measurements:
        medians = measurement.medians()
        milliseconds = [f"{1e3 * medians[name]:.1f}" for name in (*Seconds._fields, "first_token")]
        ratio = f"{slowest / medians['first_token']:.2f}"
        rows.append([measurement.model, str(measurement.visual_tokens), *milliseconds, ratio])
    return Section(title, rows)


def figure_of(measurements: Sequence[Measurement], title: str) -> Figure:
    """Draw a bar for each model: the medians of the parts, stacked."""
    figure = Figure(figsize=(7, 1.2 + 0.5 * len(measurements)), layout="constrained")
    axes = figure.subplots()
    names = [
        f"{number}: {Path(each.model).name}, {each.visual_tokens} tokens" for number, each in enumerate(measurements, 1)
    ]
    left = [0.0] * len(names)
    for part in Seconds._fields:
        widths = [measurement.medians()[part] for measurement in measurements]
        axes.barh(names, widths, left=left, label=part.replace("_", " "))
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.set(title=title, xlabel="seconds to the first token")
    axes.invert_yaxis()
    axes.legend(fontsize=7)
    return figure


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, measure, and return the exit status."""
    parser = CommandParser.of_module("eval.cost.first_token", __doc__)
    parser.add_argument("--models", type=Path, nargs="+", required=True, help="model directories")
    parser.add_argument(
        "--visual_tokens",
        metavar="COUNTS",
        help="numbers of visual tokens of an image, CLS included, e.g. 4,9,16 (default: the model's own)",
    )
    parser.add_argument("--questions", type=Path, help="easy-VQA's questions.json (default: the test split's)")
    parser.add_argument("--images", type=Path, help="folder of its images")
    parser.add_argument("--limit", type=int, default=50, help="use only the first images, this many (default: 50)")
    add_arguments(parser, output="runs/bench/first_token.json")
    return parser.run(_run, argv)


def _run(arguments: argparse.Namespace) -> None:
    device, setting = begin(arguments, batch=1, inputs=arguments.models)
    dtype = DTYPES[setting.dtype]
    data = arguments.limit, arguments.questions, arguments.images
    counts = TokenCounts.of_option(arguments.visual_tokens)
    results = measure(arguments.models, *data, device=device, dtype=dtype, visual_tokens=counts)
    title = f"first token: {setting}, {arguments.limit} images"
    values = {"machine": machine(device), **asdict(setting), "results": [result.as_json() for result in results]}
    publish(arguments.output, values, [section_of(results, title)], figure_of(results, title))


if __name__ == "__main__":
    sys.exit(main())
