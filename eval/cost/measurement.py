"""Cost of a forward pass of vision towers in one setting: seconds, memory, share of a matrix product's speed."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch._dynamo
from torch import Tensor, nn

from eval.cost.runtimes import INT8, ONNX, Setting, runner
from sparse_vlm.devices import peak_bytes
from sparse_vlm.dtypes import DTYPES
from sparse_vlm.measure.timing import matmul, take_turns
from sparse_vlm.measure.towers import Tower


@dataclass(frozen=True)
class Cost:
    """Cost of a tower in one setting.

    Attributes:
        tower: the vision tower.
        weight_bytes: size of its parameters in the setting's dtype, or in int8.
        peak_bytes: peak memory of a forward pass beyond the weights; None if PyTorch does not allocate it.
        seconds: seconds of every recorded forward pass of the batch.
    """

    tower: Tower
    weight_bytes: int
    peak_bytes: int | None
    seconds: list[float]

    @property
    def median(self) -> float:
        """Median seconds of a batch."""
        return statistics.median(self.seconds)

    def tower_cells(self) -> list[str]:
        """Cells of a table under "tower", "image", "tokens" and "GMAC"."""
        tower = self.tower
        return [tower.name, str(tower.image_size), str(tower.tokens), f"{tower.gmacs:.2f}"]

    def time_cells(self, batch: int) -> list[str]:
        """Cells of a table under "ms", "range" and "images/s", for batches of that many images."""
        fastest, slowest = 1e3 * min(self.seconds), 1e3 * max(self.seconds)
        return [f"{1e3 * self.median:.1f}", f"{fastest:.1f}–{slowest:.1f}", f"{batch / self.median:.2f}"]


@dataclass(frozen=True)
class Result:
    """Costs of a set of towers in one setting.

    Attributes:
        name: name of the set.
        setting: how the towers ran.
        costs: one for each tower.
        matmul_flops: median floating-point operations per second of the matrix product that took turns with them.
    """

    name: str
    setting: Setting
    costs: list[Cost]
    matmul_flops: float

    def share_of_matmul(self, cost: Cost) -> float:
        """Multiply-accumulates per second of the tower, relative to the matrix product's."""
        return 2e9 * cost.tower.gmacs * self.setting.batch / cost.median / self.matmul_flops

    def as_json(self) -> dict[str, Any]:
        """All values, and those that are derived from them."""
        rows = [
            asdict(cost)
            | {
                "median_seconds": cost.median,
                "images_per_second": self.setting.batch / cost.median,
                "share_of_matmul": self.share_of_matmul(cost),
            }
            for cost in self.costs
        ]
        return {"set": self.name, **asdict(self.setting), "matmul_flops": self.matmul_flops, "towers": rows}


def measure(
    name: str,
    towers: Sequence[Tower],
    models: Sequence[nn.Module],
    setting: Setting,
    device: torch.device,
    repeats: int,
) -> Result:
    """Time the models in turns, then measure their memory.

    Args:
        name: name of the set.
        towers: the vision towers.
        models: results of `build` for them, with the setting's dtype and mode.
        setting: how they run.
        device: where they are.
        repeats: recorded runs of each.
    """
    torch.set_num_threads(setting.threads)
    torch.compiler.reset()  # drop the code of earlier settings
    runs = [
        runner(model, _images(tower, setting, device), setting) for tower, model in zip(towers, models, strict=True)
    ]
    product_run, operations = matmul(DTYPES[setting.dtype], device)
    itemsize = 1 if setting.mode == INT8 else DTYPES[setting.dtype].itemsize
    # torch.compile runs a class uncompiled from its ninth model on, without an error
    with torch._dynamo.config.patch(recompile_limit=max(8, len(towers))):
        *seconds, of_product = take_turns([*runs, product_run], repeats, device)
        costs = [
            Cost(tower, tower.parameters * itemsize, None if setting.mode in ONNX else peak_bytes(run, device), times)
            for tower, run, times in zip(towers, runs, seconds, strict=True)
        ]
    return Result(name, setting, costs, operations / statistics.median(of_product))


def _images(tower: Tower, setting: Setting, device: torch.device) -> Tensor:
    images = torch.randn(setting.batch, 3, tower.image_size, tower.image_size, device=device)
    return images.to(DTYPES[setting.dtype])
