"""Time of an instruction-tuning step of several models, which take turns in one process.

    python -m train.quickstart.step_time --models runs/quickstart/built runs/quickstart/dense/built \\
        --data_path runs/quickstart/data/instruct.json --image_folder IMAGES --output step_time.json

A step is the forward and backward pass of one batch of conversations about images in float32, with all weights
training; the optimizer, whose time is the same for all models, is left out. Run nothing else at the same time.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from sparse_vlm.command_line import CommandParser
from sparse_vlm.errors import UserError
from sparse_vlm.files import check_output_files, write_json
from sparse_vlm.measure.timing import machine, require_positive, take_turns
from train.language import vlm
from train.language.data import make_data
from train.language.data_arguments import DataArguments
from train.stages.stage import StageArguments

BATCH_SIZE = 8


def batches_for(directory: Path, data: DataArguments, count: int, scratch: Path) -> tuple[Any, list[dict[str, Any]]]:
    """Return the model in training mode, and the last `count` batches of the file, which are about images.

    Args:
        directory: model directory.
        data: data arguments of `train.instruct`.
        count: number of batches.
        scratch: output directory of the stage's arguments.
    """
    args = StageArguments(output_dir=str(scratch), use_cpu=True)
    model, processor = vlm.load(vlm.ModelArguments(str(directory)), args)
    prepared = make_data(data, args, model, processor, language=True)
    dataset = prepared.training
    first = len(dataset) - count * BATCH_SIZE
    if first < 0:
        raise UserError(f"{data.data_path} has {len(dataset)} samples; {count} batches of {BATCH_SIZE} need more.")
    rows = [range(start, start + BATCH_SIZE) for start in range(first, len(dataset), BATCH_SIZE)]
    return model.train(), [prepared.collator([dataset[index] for index in batch]) for batch in rows]


def measure(models: Sequence[Path], data: DataArguments, count: int, repeats: int, scratch: Path) -> list[list[float]]:
    """Return the seconds of each model's steps: `repeats` on each of `count` batches."""
    prepared = [batches_for(directory, data, count, scratch) for directory in models]
    seconds: list[list[float]] = [[] for _ in models]
    for number in tqdm(range(count), desc="batches"):
        steps = [partial(_step, model, batches[number]) for model, batches in prepared]
        for found, more in zip(seconds, take_turns(steps, repeats, torch.device("cpu")), strict=True):
            found += more
    return seconds


def _step(model: nn.Module, batch: dict[str, Any]) -> None:
    model(**batch).loss.backward()
    model.zero_grad()


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, measure, and return the exit status."""
    parser = CommandParser.of_module("train.quickstart.step_time", __doc__)
    parser.add_argument("--models", type=Path, nargs="+", required=True, help="directories of `sparse-vlm build`")
    parser.add_argument("--data_path", required=True, help="LLaVA JSON; its last samples are used")
    parser.add_argument("--image_folder", required=True, help="folder of its images")
    parser.add_argument("--batches", type=int, default=4, help="number of batches (default: 4)")
    parser.add_argument("--repeats", type=int, default=3, help="recorded steps per model and batch (default: 3)")
    parser.add_argument("--output", type=Path, required=True, help="JSON file for every run")
    return parser.run(_run, argv)


def _run(arguments: argparse.Namespace) -> None:
    inputs = [*arguments.models, arguments.data_path, arguments.image_folder]
    check_output_files({"--output": arguments.output}, inputs)
    require_positive(batches=arguments.batches, repeats=arguments.repeats)
    data = DataArguments(data_path=arguments.data_path, image_folder=arguments.image_folder, independent_turns=True)
    seconds = measure(arguments.models, data, arguments.batches, arguments.repeats, arguments.output.parent)
    results = [
        {"model": str(model), "median_seconds": statistics.median(found), "seconds": found}
        for model, found in zip(arguments.models, seconds, strict=True)
    ]
    about = {"machine": machine(torch.device("cpu")), "threads": torch.get_num_threads(), "batch_size": BATCH_SIZE}
    write_json(arguments.output, about | {"results": results})


if __name__ == "__main__":
    sys.exit(main())
