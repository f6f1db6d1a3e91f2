"""Cost of an alignment in float32 and in bf16: bytes of the weights, seconds of a step, and losses.

    python -m train.language.frozen_cost --model built --data_path captions.json --image_folder IMAGES \\
        --output cost.json

Three alignments take turns in one process, a step each (forward, backward, AdamW on the projector): in float32; in bf16
with frozen weights in float32, which autocast converts at each use; and in bf16 with frozen weights in bf16, as
`train.align --bf16 True` does it.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from sparse_vlm.command_line import CommandParser
from sparse_vlm.devices import choose_device
from sparse_vlm.errors import UserError
from sparse_vlm.files import check_output_files, write_json
from sparse_vlm.measure.timing import machine, require_positive, seconds_of, turns
from train.align import AlignArguments, parameter_groups
from train.language import vlm
from train.language.data import make_data
from train.language.data_arguments import DataArguments
from train.stages.frozen import cast_frozen, weight_bytes
from train.stages.stage import set_trainable

VARIANTS = {  # name -> (autocast to bf16, frozen weights in bf16)
    "float32": (False, False),
    "bf16, float32 weights": (True, False),
    "bf16": (True, True),
}


def alignment(
    model_dir: Path, data: DataArguments, args: AlignArguments, *, held: bool
) -> tuple[dict[str, int], Iterator[float]]:
    """Prepare an alignment; return the bytes of its weights by dtype, and its losses, one step per `next`.

    Args:
        model_dir: directory of `sparse-vlm build`.
        data: data arguments of `train.align`.
        args: batch size, learning rate, and whether to train in bf16.
        held: hold frozen weights in bf16.
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
    make: Callable[[bool, bool], tuple[dict[str, int], Iterator[float]]], steps: int, device: torch.device
) -> list[dict[str, object]]:
    """Measure the variants in turns: bytes, losses and seconds of the steps; the median leaves out the first step."""
    names = list(VARIANTS)
    runs = [make(*VARIANTS[name]) for name in names]
    losses: list[list[float]] = [[] for _ in runs]
    seconds: list[list[float]] = [[] for _ in runs]
    for _, index in tqdm(turns(len(runs), steps), desc="steps"):
        seconds[index].append(seconds_of(partial(_step, runs[index][1], losses[index]), device))
    return [
        {"variant": name, "bytes": size, "median_seconds": statistics.median(times[1:])}
        | {"seconds": times, "losses": lost}
        for name, (size, _), times, lost in zip(names, runs, seconds, losses, strict=True)
    ]


def _step(alignment_losses: Iterator[float], losses: list[float]) -> None:
    losses.append(next(alignment_losses))


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, measure, and return the exit status."""
    parser = CommandParser.of_module("train.language.frozen_cost", __doc__)
    parser.add_argument("--model", type=Path, required=True, help="directory of `sparse-vlm build`")
    parser.add_argument("--data_path", required=True, help="LLaVA JSON, as for train.align")
    parser.add_argument("--image_folder", required=True, help="folder of its images")
    parser.add_argument("--steps", type=int, default=20, help="steps of each variant (default: 20)")
    parser.add_argument("--batch_size", type=int, default=8, help="samples of a step (default: 8)")
    parser.add_argument("--learning_rate", type=float, default=1e-3, help="learning rate (default: 1e-3)")
    parser.add_argument("--output", type=Path, required=True, help="JSON file for every run")
    return parser.run(_run, argv)


def _run(arguments: argparse.Namespace) -> None:
    inputs = [arguments.model, arguments.data_path, arguments.image_folder]
    check_output_files({"--output": arguments.output}, inputs)
    require_positive(batch_size=arguments.batch_size)
    if arguments.steps < 2:
        raise UserError(f"--steps must be at least 2, as the first step is not timed, got {arguments.steps}.")
    data = DataArguments(data_path=arguments.data_path, image_folder=arguments.image_folder)
    device = choose_device("cuda" if torch.cuda.is_available() else "cpu")

    def make(bf16: bool, held: bool) -> tuple[dict[str, int], Iterator[float]]:
        args = AlignArguments(
            output_dir=str(arguments.output.parent / "unused"),
            use_cpu=device.type == "cpu",
            bf16=bf16,
            learning_rate=arguments.learning_rate,
            per_device_train_batch_size=arguments.batch_size,
            max_steps=arguments.steps,
        )
        return alignment(arguments.model, data, args, held=held)

    about = {"machine": machine(device), "threads": torch.get_num_threads()}
    write_json(arguments.output, about | {"variants": measure(make, arguments.steps, device)})


if __name__ == "__main__":
    sys.exit(main())
