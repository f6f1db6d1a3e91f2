"""The modes in which a vision tower can run, for our encoders and dense ViTs alike."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparse_vlm.dtypes import DTYPES
from sparse_vlm.encoder import EncoderOutput, SparseFormer
from sparse_vlm.encoder.runtime.export import export_onnx, quantise, write_onnx
from sparse_vlm.encoder.runtime.inference import optimize_for_inference
from sparse_vlm.measure.timing import Run
from sparse_vlm.measure.towers import Tower, build_towers

INT8 = "onnx-int8"
ONNX = ("onnx", INT8)
MODES = ("eager", "optimized", "compiled", *ONNX, "training")


@dataclass(frozen=True)
class Setting:
    """The setting of a measurement.

    Attributes:
        threads: CPU threads.
        batch: images or samples that are computed together.
        dtype: a key of `DTYPES`; a SparseFormer's coordinates stay float32 whatever it is.
        mode: "eager": the model as it is. "optimized": `optimize_for_inference`, packed weights on a CPU and CUDA
            graphs on a GPU. "compiled": channels_last, torch.compile with frozen weights, CUDA graphs on a GPU. "onnx":
            ONNX Runtime, float32 on the CPU; "onnx-int8": with its dynamic quantisation. "training": eager, forward,
            and backward from the embedding to all weights. All of PyTorch's modes use SDPA.
    """

    threads: int
    batch: int
    dtype: str
    mode: str

    @property
    def size(self) -> str:
        """Threads and batch size in words."""
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return f"{threads}, batch {self.batch}"

    def __str__(self) -> str:
        return f"{self.size}, {self.dtype}, {self.mode}"


def build(tower: Tower, dtype: str, mode: str, device: torch.device) -> nn.Module:
    """Build the model with random weights, prepared for the mode but not compiled or exported yet."""
    return build_all([tower], dtype, mode, device)[0]


def build_all(towers: Sequence[Tower], dtype: str, mode: str, device: torch.device) -> list[nn.Module]:
    """Do the same for several towers, see `build_towers`."""
    models = build_towers(towers, device, DTYPES[dtype])
    if mode == "optimized":
        for model in models:
            optimize_for_inference(model)
    return [model.to(memory_format=torch.channels_last) for model in models] if mode == "compiled" else models


def runner(model: nn.Module, images: Tensor, setting: Setting) -> Run:
    """Make a call that runs the model on the images; "compiled" compiles at the first call.

    Args:
        model: result of `build` with the same mode.
        images: float[B, 3, H, W] in the setting's dtype.
        setting: how to run.
    """
    if setting.mode in ONNX:
        session, pixels = _session(model, images, setting), images.numpy()
        return lambda: session.run(None, {"images": pixels})
    if setting.mode == "training":
        return partial(_train, model, images)
    called: Any = model
    if setting.mode == "compiled":
        images = images.to(memory_format=torch.channels_last)
        options: dict[str, Any] = {"freezing": True, "cpp.threads": setting.threads}
        if images.is_cuda:
            options["triton.cudagraphs"] = True
        called = torch.compile(model, dynamic=False, options=options)

    def forward() -> object:
        with torch.inference_mode():
            return called(images)

    return forward


def _train(model: nn.Module, images: Tensor) -> None:
    output = model(images)
    embedding = output.pooled if isinstance(output, EncoderOutput) else output
    embedding.square().mean().backward()
    model.zero_grad()


def _session(model: nn.Module, images: Tensor, setting: Setting) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = setting.threads
    int8 = setting.mode == INT8
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        if isinstance(model, SparseFormer):
            export_onnx(model, file, int8=int8)
        else:
            two = images[:1].repeat(2, 1, 1, 1)  # a dynamic dimension of size 1 would become a constant
            write_onnx(model, {"images": two}, file, ("output",), sizes={"images": {0: torch.export.Dim("batch")}})
            if int8:
                quantise(file, model)
        return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
