"""Speed and memory of the encoders, compared with the dense ViTs that they replace.

    python -m eval.cost.encoders --sets large --batch_sizes 1 8 --threads 1 2 --modes eager compiled
    python -m eval.cost.encoders --models timm:vit_base_patch16_224 sparseformer-augreg-b sparseformer-augreg-b@448
    python -m eval.cost.encoders --sets large --tokens 4,9,16,25,36,49,64
    python -m eval.cost.encoders --sets large --modes eager optimized onnx --dtypes float32 auto --output best.json

The models of a set have random weights and take turns in one process. A matrix product takes turns with them: the
share of its speed that a model reaches can be compared across machines. With several modes or dtypes, the first tables
compare every model in its own fastest one. Writes FILE.json with every run, FILE.md and FILE.png.
"""

import argparse
import sys
from collections.abc import Sequence
from itertools import product

import numpy as np
import torch
from matplotlib.figure import Figure

from eval.cost.arguments import TOWERS_HELP, add_output, add_repeats, add_tokens
from eval.cost.best import best_sections, ratios
from eval.cost.measurement import Result, measure
from eval.cost.report import Section, check_report, megabytes, publish
from eval.cost.runtimes import MODES, ONNX, Setting, build_all
from sparse_vlm.command_line import CommandParser, add_device_argument
from sparse_vlm.devices import choose_device, choose_dtype
from sparse_vlm.dtypes import name_of
from sparse_vlm.encoder.runtime.export import require_onnx
from sparse_vlm.encoder.token_counts import TokenCounts
from sparse_vlm.errors import UserError
from sparse_vlm.measure.timing import machine, require_positive
from sparse_vlm.measure.towers import open_towers

# Dense towers first, then the SparseFormers that are bootstrapped from them.
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
    """Measure every set in every setting; only one set's models are in memory at a time."""
    settings = dtypes_and_modes(arguments.dtypes, arguments.modes, device)
    sets = {"chosen": arguments.models} if arguments.models else {name: SETS[name] for name in arguments.sets}
    tokens = TokenCounts.of_option(arguments.tokens)
    # opened before anything is timed, so that a wrong name fails at once
    towers = {name: open_towers(models, arguments.image_sizes, tokens) for name, models in sets.items()}
    results = []
    for name, (dtype, mode) in product(towers, settings):
        models = build_all(towers[name], dtype, mode, device)
        for threads, batch in product(arguments.threads, arguments.batch_sizes):
            setting = Setting(threads, batch, dtype, mode)
            results.append(measure(name, towers[name], models, setting, device, arguments.repeats))
            print(f"{name}: {setting}: measured", file=sys.stderr)
        del models  # free the memory before the next models are built
    return results


def dtypes_and_modes(dtypes: Sequence[str], modes: Sequence[str], device: torch.device) -> list[tuple[str, str]]:
    """List the pairs to measure. ONNX Runtime takes float32 alone, which need not be named beside "auto"."""
    chosen = list(dict.fromkeys(name_of(choose_dtype(name, device)) for name in dtypes))
    special = [mode for mode in modes if mode in ONNX]
    if special and (device.type != "cpu" or not {"float32", "auto"} & {*dtypes, *chosen}):
        raise UserError(f"--modes {' '.join(special)} takes float32 on the CPU: add --dtypes float32 and --device cpu.")
    if special:
        require_onnx()
    return [
        *((dtype, mode) for dtype in chosen for mode in modes if mode not in ONNX),
        *(("float32", mode) for mode in special),
    ]


def section_of(result: Result) -> Section:
    """Tabulate a result; the note says how many times faster our towers are than each dense one."""
    heading = ["tower", "image", "tokens", "GMAC", "M parameters", "ms", "range", "images/s", "of matmul", "MB", "+ MB"]
    rows = [heading]
    for cost in result.costs:
        rows.append(
            [
                *cost.tower_cells(),
                f"{cost.tower.parameters / 1e6:.1f}",
                *cost.time_cells(result.setting.batch),
                f"{result.share_of_matmul(cost):.0%}",
                megabytes(cost.weight_bytes),
                "–" if cost.peak_bytes is None else megabytes(cost.peak_bytes),
            ]
        )
    title = f"{result.name}: {result.setting}; matrix product {result.matmul_flops / 1e9:,.0f} GFLOP/s"
    return Section(title, rows, "; ".join(ratios(result.costs)))


def figure_of(results: Sequence[Result]) -> Figure:
    """Draw images per second on a logarithmic axis: a panel for each set, a group of bars for each setting."""
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


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, measure, and return the exit status."""
    parser = CommandParser.of_module("eval.cost.encoders", __doc__)
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--sets", nargs="+", default=["base", "large"], choices=list(SETS), help="sets of towers (default: base large)"
    )
    which.add_argument("--models", nargs="+", metavar="NAME[@SIZE]", help=f"{TOWERS_HELP} (default: those of --sets)")
    parser.add_argument("--image_sizes", type=int, nargs="+", help="sizes for every model (default: its own)")
    add_tokens(parser)
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1], help="images computed together (default: 1)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1], help="CPU threads (default: 1)")
    parser.add_argument(
        "--dtypes", nargs="+", default=["auto"], help="values as for --dtype of other commands (default: auto)"
    )
    parser.add_argument(
        "--modes", nargs="+", default=["eager"], choices=MODES, help="how the models run (default: eager)"
    )
    add_device_argument(parser)
    add_repeats(parser, 7)
    add_output(parser, "runs/bench/efficiency.json")
    return parser.run(_run, argv)


def _run(arguments: argparse.Namespace) -> None:
    check_report(arguments.output, arguments.models or ())
    require_positive(batch_sizes=arguments.batch_sizes, threads=arguments.threads, repeats=arguments.repeats)
    device = choose_device(arguments.device)
    results = measure_all(arguments, device)
    values = {"machine": machine(device), "results": [result.as_json() for result in results]}
    sections = [*best_sections(results), *map(section_of, results)]
    publish(arguments.output, values, sections, figure_of(results))


if __name__ == "__main__":
    sys.exit(main())
