"""Cost of the encoders beside the dense ViTs that they replace: `python -m eval.efficiency`.

Multiply-accumulates and parameters are counted without numbers; seconds are those of one image on one CPU thread in
float32, the models taking turns in one process, so that a change of the machine's load meets all of them.
Output: a table, and every measurement as JSON (--output).
"""

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import timm
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sparse_vlm.encoder import SparseFormer
from sparse_vlm.encoder.variants import variant_config
from sparse_vlm.errors import UserError, exit_with_sentence
from sparse_vlm.files import write_json


@dataclass(frozen=True)
class Contestant:
    """A model at an image size; `build` makes it with random weights."""

    name: str
    image_size: int
    tokens: int
    build: Callable[[], nn.Module]


def _encoder(name: str, image_size: int) -> Contestant:
    config = variant_config(name)
    return Contestant(name, image_size, config.focus.tokens, lambda: SparseFormer(config))


def _dense(name: str, image_size: int, tokens: int, head: int) -> Contestant:
    return Contestant(name, image_size, tokens, lambda: timm.create_model(name, num_classes=head))


# By size: dense first, the encoder that is bootstrapped from it after. Tokens without CLS.
CONTESTANTS: dict[str, tuple[Contestant, ...]] = {
    "base": (_dense("vit_base_patch16_clip_quickgelu_224", 224, 196, 512), _encoder("sparseformer-clip-b", 224)),
    "large": (
        _dense("vit_large_patch14_clip_quickgelu_224", 224, 256, 768),
        _dense("vit_large_patch14_clip_quickgelu_336", 336, 576, 768),
        _encoder("sparseformer-clip-l", 224),
        _encoder("sparseformer-clip-l", 336),
    ),
}


@dataclass
class Cost:
    """What one image costs.

    Attributes:
        name, image_size, tokens: the contestant; tokens without CLS.
        gmacs: 1e9 multiply-accumulates of convolutions, linears and attention (sampling is not counted).
        parameters: 1e6.
        seconds: every measured run, in order.
    """

    name: str
    image_size: int
    tokens: int
    gmacs: float
    parameters: float
    seconds: list[float]


def count_gmacs(model: nn.Module, image_size: int) -> float:
    """1e9 multiply-accumulates of one image; `model` on the meta device."""
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, image_size, image_size, device="meta"))
    return counter.get_total_flops() / 2e9


def measure(contestants: Sequence[Contestant], repeats: int) -> list[Cost]:
    """The costs of all contestants, timed in turns after one unrecorded run each."""
    costs: list[Cost] = []
    runs: list[tuple[nn.Module, Tensor]] = []
    for item in contestants:
        with torch.device("meta"):
            shape = item.build().eval()
        parameters = sum(parameter.numel() for parameter in shape.parameters()) / 1e6
        gmacs = count_gmacs(shape, item.image_size)
        costs.append(Cost(item.name, item.image_size, item.tokens, gmacs, parameters, []))
        runs.append((item.build().eval(), torch.randn(1, 3, item.image_size, item.image_size)))
    with torch.inference_mode():
        for repeat in range(repeats + 1):
            for cost, (model, image) in zip(costs, runs, strict=True):
                start = time.perf_counter()
                model(image)
                if repeat > 0:
                    cost.seconds.append(time.perf_counter() - start)
    return costs


def as_table(costs: Sequence[Cost]) -> Table:
    """The costs for people; times are medians, ratios are to the first row."""
    table = Table("model", "image", "tokens", "GMAC", "M parameters", "ms (median)", "range", "× faster")
    first = statistics.median(costs[0].seconds)
    for cost in costs:
        median = statistics.median(cost.seconds)
        table.add_row(
            cost.name,
            str(cost.image_size),
            str(cost.tokens),
            f"{cost.gmacs:.2f}",
            f"{cost.parameters:.1f}",
            f"{1e3 * median:.0f}",
            f"{1e3 * min(cost.seconds):.0f}–{1e3 * max(cost.seconds):.0f}",
            f"{first / median:.2f}",
        )
    return table


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m eval.efficiency", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=list(CONTESTANTS), choices=list(CONTESTANTS))
    parser.add_argument("--repeats", type=int, default=7, help="recorded runs of each model")
    parser.add_argument("--output", default="runs/bench/efficiency.json")
    arguments = parser.parse_args(argv)

    def run() -> None:
        if arguments.repeats < 1:
            raise UserError(f"--repeats must be at least 1, got {arguments.repeats}.")
        torch.set_num_threads(1)
        results = {size: measure(CONTESTANTS[size], arguments.repeats) for size in arguments.sizes}
        console = Console()
        for costs in results.values():
            console.print(as_table(costs))
        machine = {"cpu": platform.processor() or platform.machine(), "threads": 1, "torch": torch.__version__}
        rows = {size: [asdict(cost) for cost in costs] for size, costs in results.items()}
        write_json(arguments.output, {"machine": machine, "dtype": "float32", "batch": 1, "results": rows})
        console.print(f"Every measurement: {arguments.output}")

    return exit_with_sentence(run)


if __name__ == "__main__":
    sys.exit(main())
