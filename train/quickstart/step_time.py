"""Seconds of an instruction-tuning step of several models, which take turns in one process.

    python -m train.quickstart.step_time --models runs/quickstart/built runs/quickstart/dense/built \\
        --data_path runs/quickstart/data/instruct.json --image_folder IMAGES --output step_time.json

A step here is the forward and backward pass of one batch of conversations about images, everything training, in
float32; the optimizer's own time is the same for all and left out. The models alternate on every batch, after one
unrecorded step each, so that a change of the machine's load meets all of them. Run nothing else beside it.
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

from sparse_vlm.errors import UserError, exit_with_sentence
from sparse_vlm.files import check_output_files, write_json
from sparse_vlm.measure.timing import require_positive, take_turns
from train.language import vlm
from train.language.data import DataArguments, make_data
from train.stages.stage import StageArguments

BATCH_SIZE = 8


def batches_for(directory: Path, data: DataArguments, count: int, scratch: Path) -> tuple[Any, list[dict[str, Any]]]:
    """Return the model, training, and the last `count` batches of the file, which are about images.

    Args:
        directory: of the model.
        data: as for `train.instruct`.
        count: batches.
        scratch: where the stage's arguments may write.

    Raises:
        UserError: the file has too few samples.
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


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, nargs="+", required=True, help="directories of `sparse-vlm build`")
    parser.add_argument("--data_path", required=True, help="LLaVA JSON; its last samples are taken")
    parser.add_argument("--image_folder", required=True)
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3, help="recorded steps of each model on each batch")
    parser.add_argument("--output", type=Path, required=True, help="JSON file for every measurement")
    args = parser.parse_args(argv)
    check_output_files({"--output": args.output}, [*args.models, args.data_path, args.image_folder])
    require_positive(batches=args.batches, repeats=args.repeats)
    data = DataArguments(data_path=args.data_path, image_folder=args.image_folder, independent_turns=True)
    seconds = measure(args.models, data, args.batches, args.repeats, args.output.parent)
    results = [
        {"model": str(model), "median_seconds": statistics.median(found), "seconds": found}
        for model, found in zip(args.models, seconds, strict=True)
    ]
    write_json(args.output, {"threads": torch.get_num_threads(), "batch_size": BATCH_SIZE, "results": results})


if __name__ == "__main__":
    sys.exit(exit_with_sentence(lambda: main()))
