"""What bf16 spares where the language model is frozen: bytes of weights, seconds of a step, and its losses.

    python -m train.language.frozen_cost --model built --data_path captions.json --image_folder IMAGES \\
        --output cost.json

An alignment in float32, one in bf16 whose frozen weights are float32 (autocast converts them at each use), and one as
`train.align --bf16 True` has it take turns in one process, a step each (forward, backward, AdamW on the projector), so
that a change of the machine's load meets all of them.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from sparse_vlm.errors import UserError, exit_with_sentence
from sparse_vlm.files import write_json
from train.align import AlignArguments, parameter_groups
from train.language import vlm
from train.language.data import DataArguments, make_data
from train.stages.frozen import cast_frozen, weight_bytes
from train.stages.stage import set_trainable

VARIANTS = {"float32": (False, False), "bf16, float32 weights": (True, False), "bf16": (True, True)}  # autocast, held


def alignment(
    model_dir: Path, data: DataArguments, args: AlignArguments, *, held: bool
) -> tuple[dict[str, int], Iterator[float]]:
    """The bytes of a model's weights by dtype, and the losses of an alignment, a step for each that is asked for.

    Args:
        model_dir: of `sparse-vlm build`.
        data: as for `train.align`.
        args: batch size, learning rate, and whether in bf16.
        held: whether frozen weights are, too.

    Raises:
        UserError: the file has too few samples.
    """
    loaded, processor = vlm.load(vlm.ModelArguments(str(model_dir)), args)
    model: Any = loaded  # whose `to` has no usable types
    prepared = make_data(data, args, model, processor, language=False)
    if len(prepared.training) < args.max_steps * args.train_batch_size:
        raise UserError(f"{data.data_path} has {len(prepared.training)} samples: lower --steps {args.max_steps}.")
    set_trainable(model, parameter_groups(model, args))
    if held:
        cast_frozen(model, args)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], args.learning_rate)

    def losses() -> Iterator[float]:
        model.to(args.device).train()
        for number in range(args.max_steps):
            first = number * args.train_batch_size
            rows = [prepared.training[index] for index in range(first, first + args.train_batch_size)]
            batch = {name: value.to(args.device) for name, value in prepared.collator(rows).items()}
            with torch.autocast(args.device.type, torch.bfloat16, enabled=args.bf16):
                loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            yield loss.item()

    return weight_bytes(model), losses()


def measure(
    make: Callable[[bool, bool], tuple[dict[str, int], Iterator[float]]], steps: int
) -> list[dict[str, object]]:
    """A record of each variant: bytes, losses and seconds of its steps, the first left out of the seconds' median."""
    runs = {name: make(*variant) for name, variant in VARIANTS.items()}
    losses: dict[str, list[float]] = {name: [] for name in runs}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in tqdm(range(steps), desc="steps"):
        for name in list(runs) if number % 2 else reversed(runs):
            start = time.perf_counter()
            losses[name].append(next(runs[name][1]))
            seconds[name].append(time.perf_counter() - start)
    return [
        {"variant": name, "bytes": size, "median_seconds": statistics.median(seconds[name][1:])}
        | {"seconds": seconds[name], "losses": losses[name]}
        for name, (size, _) in runs.items()
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="directory of `sparse-vlm build`")
    parser.add_argument("--data_path", required=True, help="as for train.align")
    parser.add_argument("--image_folder", required=True)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--output", type=Path, required=True, help="JSON file for every measurement")
    words = parser.parse_args(argv)
    data = DataArguments(data_path=words.data_path, image_folder=words.image_folder)

    def make(bf16: bool, held: bool) -> tuple[dict[str, int], Iterator[float]]:
        args = AlignArguments(
            output_dir=str(words.output.parent / "unused"),
            use_cpu=not torch.cuda.is_available(),
            bf16=bf16,
            learning_rate=words.learning_rate,
            per_device_train_batch_size=words.batch_size,
            max_steps=words.steps,
        )
        return alignment(words.model, data, args, held=held)

    write_json(words.output, {"threads": torch.get_num_threads(), "variants": measure(make, words.steps)})


if __name__ == "__main__":
    sys.exit(exit_with_sentence(lambda: main()))
