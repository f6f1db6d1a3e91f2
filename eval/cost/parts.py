"""Where a SparseFormer's time goes: `python -m eval.cost.parts --models sparseformer-clip-l timm:NAME@336`.

Every part's time, share, multiply-accumulates and share of a matrix product's speed, eager, with random weights. Dense
ViTs, of timm, are there to compare with. On a GPU the parts are timed one after the other, without overlap.
Output: tables, FILE.json, FILE.md, FILE.png.
"""

import argparse
import statistics
import sys
import time
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

from eval.cost.arguments import add_arguments, begin
from eval.cost.report import Section, publish
from sparse_vlm.devices import synchronize
from sparse_vlm.dtypes import DTYPES
from sparse_vlm.encoder import SparseFormer
from sparse_vlm.encoder.cortex import Cortex
from sparse_vlm.encoder.focusing import AdaptiveMixing, FocusingTransformer, RoIAdjustment, RoIEncoding, SampleAndMix
from sparse_vlm.encoder.stem import Stem
from sparse_vlm.errors import UserError, exit_with_sentence
from sparse_vlm.measure.timing import machine, matmul, require_positive, take_turns
from sparse_vlm.measure.towers import Tower, open_tower

# What is spent in a module, but not in another one of this table inside it, belongs to its part.
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
    """A tower by part.

    Attributes:
        tower: which.
        batch: images at once.
        gmacs: part -> 1e9 multiply-accumulates of one image; a part that has none is not there.
        seconds: of every run: part -> seconds of the batch.
        matmul_flops: floating-point operations a second of a matrix product that took turns with it.
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
        """Part -> share of the sum of the medians."""
        medians = self.medians()
        return {part: seconds / sum(medians.values()) for part, seconds in medians.items()}

    def share_of_matmul(self, part: str) -> float:
        """Speed of the part's multiply-accumulates as a share of the matrix product's."""
        return 2e9 * self.gmacs.get(part, 0.0) * self.batch / self.medians()[part] / self.matmul_flops


@contextmanager
def by_part(model: nn.Module, read: Callable[[], float]) -> Iterator[dict[str, float]]:
    """While the context lasts, what `read` counts up during a forward pass is added up by part.

    Args:
        model: a SparseFormer, or a VisionTransformer of timm.
        read: a clock, or any other meter that only grows.

    Yields:
        part of `PARTS` -> sum, complete when the forward pass has ended.
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
    """Part -> 1e9 multiply-accumulates of one image; `Tower.gmacs` is their sum."""
    with torch.device("meta"):
        model, image = tower.build(), torch.empty(1, 3, tower.image_size, tower.image_size)
    with FlopCounterMode(display=False) as counter, by_part(model, counter.get_total_flops) as sums:
        model(image)
    return {part: flops / 2e9 for part, flops in sums.items() if flops}


def measure(towers: Sequence[Tower], batch: int, dtype: str, device: torch.device, repeats: int) -> list[Profile]:
    """The profiles of all towers, which take turns.

    Raises:
        UserError: a tower has no parts that are known here.
    """
    for tower in towers:
        if tower.name.startswith("open_clip:"):
            raise UserError(f"{tower.name} has no parts that are known here: name timm's model of the same shape.")
    profiles = [Profile(tower, batch, count_parts(tower), []) for tower in towers]
    runs = []
    for profile in profiles:
        side = profile.tower.image_size
        images = torch.randn(batch, 3, side, side, device=device).to(DTYPES[dtype])
        runs.append(partial(_record, profile.tower.build().to(device, DTYPES[dtype]), images, profile.seconds))
    product_run, operations = matmul(DTYPES[dtype], device)
    of_product = take_turns([*runs, product_run], repeats, device)[-1]
    for profile in profiles:
        profile.seconds = profile.seconds[-repeats:]  # those before warmed up
        profile.matmul_flops = operations / statistics.median(of_product)
    return profiles


def _record(model: nn.Module, images: Tensor, seconds: list[dict[str, float]]) -> None:
    def clock() -> float:
        synchronize(images.device)
        return time.perf_counter()

    with torch.inference_mode(), by_part(model, clock) as sums:
        model(images)
    seconds.append(dict(sums))


def section_of(profile: Profile, how: str) -> Section:
    """A profile as a table."""
    medians, shares = profile.medians(), profile.shares()
    rows = [["part", "ms", "of the time", "GMAC", "of matmul"]]
    for part, seconds in medians.items():
        gmacs = profile.gmacs.get(part, 0.0)
        cells = [f"{1e3 * seconds:.2f}", f"{shares[part]:.1%}", f"{gmacs:.3f}", f"{profile.share_of_matmul(part):.0%}"]
        rows.append([part, *cells])
    total, gmacs = sum(medians.values()), sum(profile.gmacs.values())
    share = 2e9 * gmacs * profile.batch / total / profile.matmul_flops
    rows.append(["sum", f"{1e3 * total:.2f}", "100%", f"{gmacs:.3f}", f"{share:.0%}"])
    return Section(f"{profile.tower}: {how}; matrix product {profile.matmul_flops / 1e9:,.0f} GFLOP/s", rows)


def figure_of(profiles: Sequence[Profile]) -> Figure:
    """A bar for each tower, its parts' shares of the time side by side."""
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


def build_parser() -> argparse.ArgumentParser:
    """The arguments of `python -m eval.cost.parts`."""
    parser = argparse.ArgumentParser(prog="python -m eval.cost.parts", description=(__doc__ or "").splitlines()[0])
    names = ["sparseformer-clip-b", "sparseformer-clip-l"]
    parser.add_argument(
        "--models", nargs="+", default=names, metavar="NAME[@SIZE]", help="see sparse_vlm/measure/towers.py"
    )
    parser.add_argument("--batch", type=int, default=1, help="images at once")
    add_arguments(parser, repeats=15, output="runs/bench/encoder_profile.json")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    arguments = build_parser().parse_args(argv)

    def run() -> None:
        require_positive(batch=arguments.batch)
        device, dtype = begin(arguments)
        towers = [open_tower(name) for name in dict.fromkeys(arguments.models)]
        profiles = measure(towers, arguments.batch, dtype, device, arguments.repeats)
        how = f"{arguments.threads} CPU threads, batch {arguments.batch}, {dtype}"
        setting = {"threads": arguments.threads, "batch": arguments.batch, "dtype": dtype}
        towers_json = [asdict(p) | {"median_seconds": p.medians(), "shares": p.shares()} for p in profiles]
        values = {"machine": machine(device), **setting, "profiles": towers_json}
        publish(arguments.output, values, [section_of(profile, how) for profile in profiles], figure_of(profiles))

    return exit_with_sentence(run)


if __name__ == "__main__":
    sys.exit(main())
