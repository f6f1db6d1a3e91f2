"""Seconds until the first word of an answer: `python -m eval.cost.first_token --models DIR DIR … --output FILE`.

One image and one question, batch 1: what `generate` does before its first token. The images and questions are
easy-VQA's (by default the test split). The models take turns in one process, picture by picture and in alternating
order, so that a change of the machine's load meets all of them. The preparation of the picture and of the text is not
counted.
Output: a table of medians, and every measurement as JSON.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Column, Table
from transformers import BatchFeature

from eval.benchmarks import easy_vqa
from sparse_vlm.device_arguments import add_device_arguments
from sparse_vlm.devices import choose_device, choose_dtype, synchronize
from sparse_vlm.dtypes import name_of
from sparse_vlm.errors import UserError, exit_with_sentence
from sparse_vlm.files import check_output_files, write_json
from sparse_vlm.image_files import open_image
from sparse_vlm.measure.timing import machine, require_positive
from sparse_vlm.vlm.chat import encode_prompt
from sparse_vlm.vlm.loading import load_vlm
from sparse_vlm.vlm.modeling import SparseVLMForConditionalGeneration


class Seconds(NamedTuple):
    """One first token, by part.

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
    """A model's first tokens.

    Attributes:
        model: its directory.
        visual_tokens: of a picture.
        prompt_tokens: visual ones included, of each run.
        runs: one for each picture.
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
        """Everything."""
        return {
            "model": self.model,
            "visual_tokens": self.visual_tokens,
            "prompt_tokens": self.prompt_tokens,
            "median_seconds": self.medians(),
            "runs": [run._asdict() for run in self.runs],
        }


def time_first_token(model: SparseVLMForConditionalGeneration, inputs: BatchFeature) -> tuple[int, Seconds]:
    """The most likely first token of the answer, and how long it took.

    Args:
        model: of `load_vlm`.
        inputs: of `encode_prompt`, with a picture, on the model's device.
    """
    body: Any = model.model
    ends: list[float] = []

    def clock() -> float:
        synchronize(model.device)
        return time.perf_counter()

    hooks = [
        part.register_forward_hook(lambda *_: ends.append(clock())) for part in (body.vision_tower, body.language_model)
    ]
    try:
        with torch.inference_mode():
            start = clock()
            token = int(model(**inputs, use_cache=True, logits_to_keep=1).logits[0, -1].argmax())
            end = clock()
    finally:
        for hook in hooks:
            hook.remove()
    encoded, prefilled = ends
    return token, Seconds(encoded - start, prefilled - encoded, end - prefilled)


def measure(
    model_dirs: Sequence[Path],
    pictures: int,
    questions_file: Path | None = None,
    images: Path | None = None,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> list[Measurement]:
    """The first tokens of all models on the first `pictures` images of easy-VQA, after one unrecorded run each.

    `questions_file` and `images` are as for `easy_vqa.load_questions`.

    Raises:
        UserError: a directory is no model of ours, or there are not so many pictures.
    """
    questions = {question.image: question for question in easy_vqa.load_questions(questions_file, images)}
    if not 1 <= pictures <= len(questions):
        raise UserError(f"--pictures must lie in 1…{len(questions)}, got {pictures}.")
    asked = [(open_image(path), questions[path].text) for path in list(questions)[:pictures] if isinstance(path, Path)]
    contestants = []
    for directory in model_dirs:
        model, processor = load_vlm(directory, dtype)
        model.to(device)  # type: ignore[arg-type]  # transformers' own annotation of `to` fits no device
        contestants.append((model, processor, Measurement(str(directory), processor.num_image_tokens)))
        time_first_token(model, encode_prompt(processor, *asked[0]).to(device))
    for number, (image, text) in enumerate(asked):
        for model, processor, measurement in contestants[:: 1 if number % 2 else -1]:
            inputs = encode_prompt(processor, image, text).to(device)
            measurement.runs.append(time_first_token(model, inputs)[1])
            measurement.prompt_tokens.append(inputs["input_ids"].shape[1])
    return [measurement for _, _, measurement in contestants]


def as_table(measurements: Sequence[Measurement]) -> Table:
    """Medians for people, in milliseconds; "× faster" is to the slowest."""
    slowest = max(measurement.medians()["first_token"] for measurement in measurements)
    columns = ("visual tokens", "image", "projector, prefill", "head", "first token, ms", "× faster")
    table = Table(Column("model", overflow="fold"), *columns)  # a path is never cut short
    for measurement in measurements:
        medians = measurement.medians()
        milliseconds = [f"{1e3 * medians[name]:.1f}" for name in (*Seconds._fields, "first_token")]
        ratio = f"{slowest / medians['first_token']:.2f}"
        table.add_row(measurement.model, str(measurement.visual_tokens), *milliseconds, ratio)
    return table


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m eval.cost.first_token", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--models", type=Path, nargs="+", required=True, help="model directories")
    parser.add_argument("--output", type=Path, required=True, help="the .json file to write")
    parser.add_argument("--questions", type=Path, help="easy-VQA's questions.json; default: the test split's")
    parser.add_argument("--images", type=Path, help="the folder of its images")
    parser.add_argument("--pictures", type=int, default=50, help="measured runs of each model")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    add_device_arguments(parser)
    arguments = parser.parse_args(argv)

    def run() -> None:
        check_output_files({"--output": arguments.output}, arguments.models)
        require_positive(threads=arguments.threads)
        device = choose_device(arguments.device)
        dtype = choose_dtype(arguments.dtype, device)
        torch.set_num_threads(arguments.threads)
        measurements = measure(
            arguments.models, arguments.pictures, arguments.questions, arguments.images, device=device, dtype=dtype
        )
        described = machine(device) | {"threads": arguments.threads}
        results = [measurement.as_json() for measurement in measurements]
        write_json(arguments.output, {"machine": described, "dtype": name_of(dtype), "batch": 1, "results": results})
        Console().print(as_table(measurements))

    return exit_with_sentence(run)


if __name__ == "__main__":
    sys.exit(main())
