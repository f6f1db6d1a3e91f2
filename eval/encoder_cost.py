"""What a forward pass of vision towers costs in a setting: seconds, memory, share of a matrix product's speed."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from eval.timing import DTYPES, matmul, peak_bytes, take_turns
from eval.vision_towers import Tower

MODES = ("eager", "compiled")


@dataclass(frozen=True)
class Setting:
    """How the models of a set run.

    Attributes:
        threads: of the CPU.
        batch: images at once.
        dtype: a key of `DTYPES`; a SparseFormer's coordinates stay float32 whatever it is.
        mode: "eager": as the model is called. "compiled": channels_last, torch.compile with frozen weights, CUDA
            graphs on a GPU. SDPA is in both, and so is everything on both sides.
    """

    threads: int
    batch: int
    dtype: str
    mode: str

    def __str__(self) -> str:
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return f"{threads}, batch {self.batch}, {self.dtype}, {self.mode}"


@dataclass(frozen=True)
class Cost:
    """What a tower costs in a setting.

    Attributes:
        tower: which.
        weight_bytes: of its parameters in the setting's dtype.
        peak_bytes: allocated beyond them at the worst moment of a forward pass.
        seconds: of every recorded forward pass of the batch.
    """

    tower: Tower
    weight_bytes: int
    peak_bytes: int
    seconds: list[float]

    @property
    def median(self) -> float:
        """Seconds of a batch."""
        return statistics.median(self.seconds)


@dataclass(frozen=True)
class Result:
    """A set of towers in one setting.

    Attributes:
        name: of the set.
        setting: how they ran.
        costs: in the set's order.
        matmul_flops: floating-point operations a second of the matrix product that took turns with them (median).
    """

    name: str
    setting: Setting
    costs: list[Cost]
    matmul_flops: float

    def share_of_matmul(self, cost: Cost) -> float:
        """Speed of the tower's multiply-accumulates as a share of the matrix product's."""
        return 2e9 * cost.tower.gmacs * self.setting.batch / cost.median / self.matmul_flops

    def as_json(self) -> dict[str, Any]:
        """Everything, with what follows from it."""
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


def measure(name: str, towers: Sequence[Tower], models: Sequence[nn.Module], setting: Setting, repeats: int) -> Result:
    """Times the models in turn, then counts their memory.

    Args:
        name: of the set.
        towers, models: the same in two forms; the models' dtype is the setting's.
        setting: how they run.
        repeats: recorded runs of each.
    """
    torch.set_num_threads(setting.threads)
    torch.compiler.reset()  # the code of earlier settings
    device = next(models[0].parameters()).device
    prepared = [prepare(model, setting) for model in models]
    runs = [
        partial(_forward, model, _images(tower, setting, device)) for tower, model in zip(towers, prepared, strict=True)
    ]
    product_run, operations = matmul(DTYPES[setting.dtype], device)
    *seconds, of_product = take_turns([*runs, product_run], repeats, device)
    costs = [
        Cost(tower, _weight_bytes(model), peak_bytes(run, device), times)
        for tower, model, run, times in zip(towers, models, runs, seconds, strict=True)
    ]
    return Result(name, setting, costs, operations / statistics.median(of_product))


def prepare(model: nn.Module, setting: Setting) -> nn.Module:
    """The model as the setting's mode runs it, the same steps for every model."""
    if setting.mode == "eager":
        return model.to(memory_format=torch.contiguous_format)
    options: dict[str, Any] = {"freezing": True, "cpp.threads": setting.threads}
    if next(model.parameters()).is_cuda:
        options["triton.cudagraphs"] = True
    return torch.compile(model.to(memory_format=torch.channels_last), dynamic=False, options=options)


def _images(tower: Tower, setting: Setting, device: torch.device) -> Tensor:
    images = torch.randn(setting.batch, 3, tower.image_size, tower.image_size, device=device)
    layout = torch.contiguous_format if setting.mode == "eager" else torch.channels_last
    return images.to(DTYPES[setting.dtype], memory_format=layout)


def _forward(model: nn.Module, images: Tensor) -> None:
    with torch.inference_mode():
        model(images)


def _weight_bytes(model: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in model.parameters())
