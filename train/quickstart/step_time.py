"""Seconds of an instruction-tuning step of several models, which take turns in one process.

    python -m train.quickstart.step_time --models runs/quickstart/built runs/quickstart/dense/built \\
        --data_path runs/quickstart/data/instruct.json --image_folder IMAGES --output step_time.json

A step here is forward and backward of one batch of conversations about pictures, everything training, in float32; the
optimiser's own time is the same for all, and left out. In turn, so that a change of the machine's load meets all.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from sparse_vlm.errors import UserError, exit_with_sentence
from sparse_vlm.files import check_output_files, write_json
from train import vlm
from train.stage import StageArguments
from train.vlm_data import DataArguments, make_data

BATCH_SIZE = 8


def batches_for(directory: Path, data: DataArguments, count: int, scratch: Path) -> tuple[Any, list[dict[str, Any]]]:
    """The model, training, and the last `count` batches of the file, which are about pictures.

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


def measure(models: Sequence[Path], data: DataArguments, count: int, scratch: Path) -> list[list[float]]:
    """Seconds of each model's steps, after one that warms up."""
    prepared = [batches_for(directory, data, count, scratch) for directory in models]
    seconds: list[list[float]] = [[] for _ in models]
    for number in tqdm(range(-1, count), desc="steps"):
        for (model, batches), found in zip(prepared, seconds, strict=True):
            start = time.perf_counter()
            model(**batches[max(number, 0)]).loss.backward()
            if number >= 0:
                found.append(time.perf_counter() - start)
            model.zero_grad()
    return seconds


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, nargs="+", required=True, help="directories of `sparse-vlm build`")
    parser.add_argument("--data_path", required=True, help="LLaVA JSON; its last samples are taken")
    parser.add_argument("--image_folder", required=True)
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--output", type=Path, required=True, help="JSON file for every measurement")
    args = parser.parse_args(argv)
    check_output_files({"--output": args.output}, [*args.models, args.data_path, args.image_folder])
    data = DataArguments(data_path=args.data_path, image_folder=args.image_folder, independent_turns=True)
    seconds = measure(args.models, data, args.batches, args.output.parent)
    results = [
        {"model": str(model), "median_seconds": statistics.median(found), "seconds": found}
        for model, found in zip(args.models, seconds, strict=True)
    ]
    write_json(args.output, {"threads": torch.get_num_threads(), "batch_size": BATCH_SIZE, "results": results})


if __name__ == "__main__":
    sys.exit(exit_with_sentence(lambda: main()))
