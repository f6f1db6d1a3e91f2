"""What a forward pass of vision towers costs in a setting: seconds, memory, share of a matrix product's speed."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from eval.timing import DTYPES, matmul, peak_bytes, take_turns
from eval.vision_towers import Tower
from sparse_vlm.encoder.inference import optimize_for_inference

MODES = ("eager", "packed", "compiled")


@dataclass(frozen=True)
class Setting:
    """How the models of a set run.

    Attributes:
        threads: of the CPU.
        batch: images at once.
        dtype: a key of `DTYPES`; a SparseFormer's coordinates stay float32 whatever it is.
        mode: "eager": as the model is called. "packed": `optimize_for_inference`, float32 on the CPU only. "compiled":
            channels_last, torch.compile with frozen weights, CUDA graphs on a GPU. SDPA is in all of them, and all of
            them are the same for ours and for the dense ViTs.
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
        weight_bytes: of as many parameters in the setting's dtype.
        peak_bytes: allocated beyond the weights at the worst moment of a forward pass.
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


def build(tower: Tower, dtype: str, mode: str, device: torch.device) -> nn.Module:
    """The model with random weights, as the mode wants it but for compiling: the same steps for every tower.

    Raises:
        UserError: "packed" with anything but float32 on the CPU.
    """
    model = tower.build().to(device, DTYPES[dtype])
    if mode == "packed":
        optimize_for_inference(model)
    return model.to(memory_format=torch.channels_last) if mode == "compiled" else model


def measure(
    name: str,
    towers: Sequence[Tower],
    models: Sequence[nn.Module],
    setting: Setting,
    device: torch.device,
    repeats: int,
) -> Result:
    """Times the models in turn, then counts their memory.

    Args:
        name: of the set.
        towers: which.
        models: of `build` with the setting's dtype and mode.
        setting: how they run.
        device: where they are.
        repeats: recorded runs of each.
    """
    torch.set_num_threads(setting.threads)
    torch.compiler.reset()  # the code of earlier settings
    runs = [
        partial(_forward, compiled(model, setting, device), _images(tower, setting, device))
        for tower, model in zip(towers, models, strict=True)
    ]
    product_run, operations = matmul(DTYPES[setting.dtype], device)
    *seconds, of_product = take_turns([*runs, product_run], repeats, device)
    itemsize = DTYPES[setting.dtype].itemsize
    costs = [
        Cost(tower, tower.parameters * itemsize, peak_bytes(run, device), times)
        for tower, run, times in zip(towers, runs, seconds, strict=True)
    ]
    return Result(name, setting, costs, operations / statistics.median(of_product))


def compiled(model: nn.Module, setting: Setting, device: torch.device) -> Callable[..., Any]:
    """The model itself in the other modes; code is made at its first call."""
    if setting.mode != "compiled":
        return model
    options: dict[str, Any] = {"freezing": True, "cpp.threads": setting.threads}
    if device.type == "cuda":
        options["triton.cudagraphs"] = True
    return torch.compile(model, dynamic=False, options=options)


def _images(tower: Tower, setting: Setting, device: torch.device) -> Tensor:
    images = torch.randn(setting.batch, 3, tower.image_size, tower.image_size, device=device)
    layout = torch.channels_last if setting.mode == "compiled" else torch.contiguous_format
    return images.to(DTYPES[setting.dtype], memory_format=layout)


def _forward(model: Callable[..., Any], images: Tensor) -> None:
    with torch.inference_mode():
        model(images)
