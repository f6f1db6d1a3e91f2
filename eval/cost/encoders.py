"""Cost of the encoders beside the dense ViTs that they replace: `python -m eval.cost.encoders`.

    python -m eval.cost.encoders --sets large --batches 1 8 --threads 1 2 --modes eager compiled --output FILE.json
    python -m eval.cost.encoders --models timm:vit_base_patch16_224 sparseformer-augreg-b sparseformer-augreg-b@448
    python -m eval.cost.encoders --sets large --modes onnx onnx-int8 training

All models of a set take turns in one process, with random weights, and a matrix product takes its turn among them: what
share of its speed a model reaches is comparable across machines. Output: tables, FILE.json, FILE.md, FILE.png.
"""

import argparse
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from eval.cost.measurement import Result, measure
from eval.cost.report import Section, megabytes, publish, require_json_name
from eval.cost.runtimes import MODES, ONNX, Setting, build
from sparse_vlm.device_arguments import add_device_argument
from sparse_vlm.devices import choose_device, choose_dtype
from sparse_vlm.dtypes import name_of
from sparse_vlm.encoder.export import require_onnx
from sparse_vlm.errors import UserError, exit_with_sentence
from sparse_vlm.measure.timing import machine, require_positive
from sparse_vlm.measure.towers import open_tower

# What is bootstrapped from what: the dense towers first.
SETS: dict[str, tuple[str, ...]] = {
    "base": ("timm:vit_base_patch16_clip_quickgelu_224", "sparseformer-clip-b"),
    "large": (
        "timm:vit_large_patch14_clip_quickgelu_224",
        "timm:vit_large_patch14_clip_quickgelu_336",
        "sparseformer-clip-l",
        "sparseformer-clip-l@336",
    ),
    "siglip": ("timm:vit_so400m_patch14_siglip_384", "sparseformer-clip-l"),
}


def measure_all(arguments: argparse.Namespace, device: torch.device) -> list[Result]:
    """Every set in every setting; one set's models are in memory at a time.

    Raises:
        UserError: an unknown model, a size that it cannot have, or a mode that does not fit or needs more packages.
    """
    dtypes = list(dict.fromkeys(name_of(choose_dtype(name, device)) for name in arguments.dtypes))
    special = [mode for mode in arguments.modes if mode in ONNX]
    if special and (device.type != "cpu" or dtypes != ["float32"]):
        raise UserError(
            f"--modes {' '.join(special)} takes float32 on the CPU: measure other dtypes and devices in a run of their "
            "own."
        )
    if "graphs" in arguments.modes and device.type != "cuda":
        raise UserError("--modes graphs takes CUDA graphs: add --device cuda.")
    if special:
        require_onnx()
    sets = {"chosen": arguments.models} if arguments.models else {name: SETS[name] for name in arguments.sets}
    sizes: Sequence[int | None] = arguments.image_sizes or [None]
    towers = {  # all of them before the first is timed: a wrong name must not cost an hour
        name: list(dict.fromkeys(open_tower(model, size) for model in models for size in sizes))
        for name, models in sets.items()
    }
    results = []
    for name, dtype, mode in product(towers, dtypes, arguments.modes):
        models = [build(tower, dtype, mode, device) for tower in towers[name]]
        for threads, batch in product(arguments.threads, arguments.batches):
            setting = Setting(threads, batch, dtype, mode)
            results.append(measure(name, towers[name], models, setting, device, arguments.repeats))
            print(f"{name}: {setting}: measured", file=sys.stderr)
        del models  # before the next ones are built
    return results


def section_of(result: Result) -> Section:
    """A result as a table; below it, how many times faster ours are than each dense tower."""
    heading = ["tower", "image", "tokens", "GMAC", "M parameters", "ms", "range", "images/s", "of matmul", "MB", "+ MB"]
    rows = [heading]
    for cost in result.costs:
        tower, seconds = cost.tower, cost.seconds
        rows.append(
            [
                tower.name,
                str(tower.image_size),
                str(tower.tokens),
                f"{tower.gmacs:.2f}",
                f"{tower.parameters / 1e6:.1f}",
                f"{1e3 * cost.median:.1f}",
                f"{1e3 * min(seconds):.1f}–{1e3 * max(seconds):.1f}",
                f"{result.setting.batch / cost.median:.2f}",
                f"{result.share_of_matmul(cost):.0%}",
                megabytes(cost.weight_bytes),
                "–" if cost.peak_bytes is None else megabytes(cost.peak_bytes),
            ]
        )
    title = f"{result.name}: {result.setting}; matrix product {result.matmul_flops / 1e9:,.0f} GFLOP/s"
    return Section(title, rows, "; ".join(ratios(result)))


def ratios(result: Result) -> list[str]:
    """ "NAME@SIZE: 5.2× DENSE@SIZE, 12.0× …" for each of our towers: medians of the same number of images."""
    dense = [cost for cost in result.costs if not cost.tower.sparse]
    return [
        f"{cost.tower}: " + ", ".join(f"{other.median / cost.median:.2f}× {other.tower}" for other in dense)
        for cost in result.costs
        if cost.tower.sparse and dense
    ]


def figure_of(results: Sequence[Result]) -> Figure:
    """Images a second, on a logarithmic axis: a panel for each set, a group of bars for each setting."""
    names = list(dict.fromkeys(result.name for result in results))
    settings = list(dict.fromkeys(result.setting for result in results))
    figure = Figure(figsize=(max(5.0, 2.2 * len(settings)), 3.4 * len(names)), layout="constrained")
    for axes, name in zip(figure.subplots(len(names), squeeze=False)[:, 0], names, strict=True):
        members = [result for result in results if result.name == name]
        towers = [cost.tower for cost in members[0].costs]
        width = 0.8 / len(towers)
        for index, tower in enumerate(towers):
            places = np.arange(len(members)) + (index - (len(towers) - 1) / 2) * width
            speeds = [result.setting.batch / result.costs[index].median for result in members]
            axes.bar_label(axes.bar(places, speeds, width, label=str(tower)), fmt="%.2g", fontsize=6)
        labels = [str(result.setting).replace(", ", "\n") for result in members]
        axes.set(title=name, ylabel="images/s", yscale="log", xticks=range(len(members)), xticklabels=labels)
        axes.tick_params(axis="x", labelsize=7)
        axes.legend(fontsize=6)
    return figure


def build_parser() -> argparse.ArgumentParser:
    """The arguments of `python -m eval.cost.encoders`."""
    parser = argparse.ArgumentParser(prog="python -m eval.cost.encoders", description=(__doc__ or "").splitlines()[0])
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--sets", nargs="+", default=["base", "large"], choices=list(SETS))
    which.add_argument("--models", nargs="+", metavar="NAME[@SIZE]", help="see sparse_vlm/measure/towers.py")
    parser.add_argument("--image-sizes", type=int, nargs="+", help="for every model; else each has its own")
    parser.add_argument("--batches", type=int, nargs="+", default=[1], help="images at once")
    parser.add_argument("--threads", type=int, nargs="+", default=[1], help="of the CPU")
    parser.add_argument("--dtypes", nargs="+", default=["auto"], help="each as the --dtype of other commands")
    parser.add_argument("--modes", nargs="+", default=["eager"], choices=MODES)
    add_device_argument(parser)
    parser.add_argument("--repeats", type=int, default=7, help="recorded runs of each model")
    parser.add_argument("--output", type=Path, default=Path("runs/bench/efficiency.json"))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    arguments = build_parser().parse_args(argv)

    def run() -> None:
        require_json_name(arguments.output)
        require_positive(batches=arguments.batches, threads=arguments.threads, repeats=arguments.repeats)
        device = choose_device(arguments.device)
        results = measure_all(arguments, device)
        values = {
            "machine": machine(device),
            "results": [result.as_json() for result in results],
        }
        publish(arguments.output, values, [section_of(result) for result in results], figure_of(results))

    return exit_with_sentence(run)


if __name__ == "__main__":
    sys.exit(main())
