"""Time of a SparseFormer's parts: stem, sampling, mixing, cortex and the rest.

    python -m eval.cost.parts --models sparseformer-clip-l timm:vit_large_patch14_clip_quickgelu_224@336
    python -m eval.cost.parts --batch_size 8 --threads 2 --output runs/bench/parts.json

Reports each part's time, share of the time, multiply-accumulates and share of a matrix product's speed, for eager
models with random weights. Dense ViTs of timm can be named for comparison. On a GPU the parts are timed one after the
other, without overlap. Writes FILE.json with every run, FILE.md and FILE.png.
"""

import argparse
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial

import torch
from matplotlib.figure import Figure
from timm.layers.patch_embed import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from eval.cost.arguments import TOWERS_HELP, add_arguments, add_repeats, begin
from eval.cost.report import Section, publish
from eval.cost.runtimes import Setting
from sparse_vlm.command_line import CommandParser
from sparse_vlm.dtypes import DTYPES
from sparse_vlm.encoder import SparseFormer
from sparse_vlm.encoder.cortex import Cortex
from sparse_vlm.encoder.focusing import AdaptiveMixing, FocusingTransformer, RoIAdjustment, RoIEncoding, SampleAndMix
from sparse_vlm.encoder.stem import Stem
from sparse_vlm.errors import UserError
from sparse_vlm.measure.timing import clock, machine, matmul, require_positive, take_turns
from sparse_vlm.measure.towers import Tower, open_tower

# Time spent in a module, outside any nested module of this table, counts for its part.
PARTS: dict[type[nn.Module], str] = {
    Stem: "stem",
    SampleAndMix: "sampling",  # the points and the bilinear samples
    AdaptiveMixing: "mixing",  # its generator included
    RoIAdjustment: "RoIs",
    RoIEncoding: "RoIs",
    FocusingTransformer: "focusing attention, MLP",  # and the transition
    Cortex: "cortex",
    SparseFormer: "rest",
    PatchEmbed: "stem",
    VisionTransformer: "blocks",
}


@dataclass
class Profile:
    """Cost of a tower by part.

    Attributes:
        tower: the vision tower.
        batch: images that are computed together.
        gmacs: part -> 1e9 multiply-accumulates of one image; parts without any are left out.
        seconds: part -> seconds of the batch, for every run.
        matmul_flops: floating-point operations per second of a matrix product that took turns with the tower.
    """

    tower: Tower
    batch: int
    gmacs: dict[str, float]
    seconds: list[dict[str, float]]
    matmul_flops: float = 0.0

    def medians(self) -> dict[str, float]:
        """Part -> median seconds, in the order of `PARTS`."""
        parts = [part for part in dict.fromkeys(PARTS.values()) if part in self.seconds[0]]
        return {part: statistics.median(run[part] for run in self.seconds) for part in parts}

    def shares(self) -> dict[str, float]:
        """Part -> its share of the sum of the medians."""
        medians = self.medians()
        return {part: seconds / sum(medians.values()) for part, seconds in medians.items()}

    def share_of_matmul(self, part: str) -> float:
        """Multiply-accumulates per second of the part, relative to the matrix product's."""
        return 2e9 * self.gmacs.get(part, 0.0) * self.batch / self.medians()[part] / self.matmul_flops


@contextmanager
def by_part(model: nn.Module, read: Callable[[], float]) -> Iterator[dict[str, float]]:
    """Split a meter's increase during a forward pass by part.

    Args:
        model: a SparseFormer, or a VisionTransformer of timm.
        read: a clock, or any other meter that only increases.

    Yields:
        part of `PARTS` -> sum, complete after the forward pass.
    """
    sums: dict[str, float] = defaultdict(float)
    inside: list[str] = []
    last = 0.0

    def settle() -> None:
        nonlocal last
        now = read()
        if inside:
            sums[inside[-1]] += now - last
        last = now

    def enter(part: str, *_: object) -> None:
        settle()
        inside.append(part)

    def leave(*_: object) -> None:
        settle()
        inside.pop()

    hooks = []
    for module in model.modules():
        if (part := PARTS.get(type(module))) is not None:
            hooks += [module.register_forward_pre_hook(partial(enter, part)), module.register_forward_hook(leave)]
    try:
        yield sums
    finally:
        for hook in hooks:
            hook.remove()


def count_parts(tower: Tower) -> dict[str, float]:
    """Count the multiply-accumulates of one image: part -> 1e9 of them; their sum is `Tower.gmacs`."""
    with torch.device("meta"):
        model, image = tower.build(), torch.empty(1, 3, tower.image_size, tower.image_size)
    with FlopCounterMode(display=False) as counter, by_part(model, counter.get_total_flops) as sums:
        model(image)
    return {part: flops / 2e9 for part, flops in sums.items() if flops}


def measure(towers: Sequence[Tower], setting: Setting, device: torch.device, repeats: int) -> list[Profile]:
    """Profile all towers in turns."""
    for tower in towers:
        if tower.name.startswith("open_clip:"):
            raise UserError(f"The parts of {tower.name} are not known here: name timm's model of the same shape.")
    dtype = DTYPES[setting.dtype]
    profiles = [Profile(tower, setting.batch, count_parts(tower), []) for tower in towers]
    runs = []
    for profile in profiles:
        side = profile.tower.image_size
        images = torch.randn(setting.batch, 3, side, side, device=device).to(dtype)
        runs.append(partial(_record, profile.tower.build().to(device, dtype), images, profile.seconds))
    product_run, operations = matmul(dtype, device)
    of_product = take_turns([*runs, product_run], repeats, device)[-1]
    for profile in profiles:
        profile.seconds = profile.seconds[-repeats:]  # without the warm-up
        profile.matmul_flops = operations / statistics.median(of_product)
    return profiles


def _record(model: nn.Module, images: Tensor, seconds: list[dict[str, float]]) -> None:
    with torch.inference_mode(), by_part(model, partial(clock, images.device)) as sums:
        model(images)
    seconds.append(dict(sums))


def section_of(profile: Profile, setting: Setting) -> Section:
    """Tabulate a profile."""
    medians, shares = profile.medians(), profile.shares()
    rows = [["part", "ms", "of the time", "GMAC", "of matmul"]]
    for part, seconds in medians.items():
        gmacs = profile.gmacs.get(part, 0.0)
        cells = [f"{1e3 * seconds:.2f}", f"{shares[part]:.1%}", f"{gmacs:.3f}", f"{profile.share_of_matmul(part):.0%}"]
        rows.append([part, *cells])
    total, gmacs = sum(medians.values()), sum(profile.gmacs.values())
    share = 2e9 * gmacs * profile.batch / total / profile.matmul_flops
    rows.append(["sum", f"{1e3 * total:.2f}", "100%", f"{gmacs:.3f}", f"{share:.0%}"])
    return Section(f"{profile.tower}: {setting}; matrix product {profile.matmul_flops / 1e9:,.0f} GFLOP/s", rows)


def figure_of(profiles: Sequence[Profile]) -> Figure:
    """Draw a bar for each tower, divided into its parts' shares of the time."""
    figure = Figure(figsize=(7, 1 + 0.6 * len(profiles)), layout="constrained")
    axes = figure.subplots()
    names = [str(profile.tower) for profile in profiles]
    left = dict.fromkeys(names, 0.0)
    for part in dict.fromkeys(PARTS.values()):
        widths = [100 * profile.shares().get(part, 0.0) for profile in profiles]
        if any(widths):
            axes.barh(names, widths, left=list(left.values()), label=part)
            left = {name: left[name] + width for name, width in zip(names, widths, strict=True)}
    axes.set(xlabel="share of the time, %", xlim=(0, 100))
    axes.tick_params(axis="y", labelsize=7)
    axes.invert_yaxis()
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, measure, and return the exit status."""
    parser = CommandParser.of_module("eval.cost.parts", __doc__)
    names = ["sparseformer-clip-b", "sparseformer-clip-l"]
    parser.add_argument(
        "--models", nargs="+", default=names, metavar="NAME[@SIZE]", help=f"{TOWERS_HELP} (default: {' '.join(names)})"
    )
    parser.add_argument("--batch_size", type=int, default=1, help="images computed together (default: 1)")
    add_repeats(parser, 15)
    add_arguments(parser, output="runs/bench/encoder_profile.json")
    return parser.run(_run, argv)


def _run(arguments: argparse.Namespace) -> None:
    require_positive(batch_size=arguments.batch_size, repeats=arguments.repeats)
    device, setting = begin(arguments, arguments.batch_size, inputs=arguments.models)
    towers = [open_tower(name) for name in dict.fromkeys(arguments.models)]
    profiles = measure(towers, setting, device, arguments.repeats)
    rows = [asdict(each) | {"median_seconds": each.medians(), "shares": each.shares()} for each in profiles]
    values = {"machine": machine(device), **asdict(setting), "profiles": rows}
    publish(arguments.output, values, [section_of(each, setting) for each in profiles], figure_of(profiles))


if __name__ == "__main__":
    sys.exit(main())
