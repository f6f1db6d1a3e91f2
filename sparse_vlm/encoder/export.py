"""A SparseFormer as an ONNX file that ONNX Runtime was seen to compute correctly. Needs the extra `export`."""

import json
import os
from pathlib import Path

import torch
from torch import Tensor, nn

from sparse_vlm.encoder.model import SparseFormer
from sparse_vlm.errors import UserError

OPSET = 20  # the first with Gelu; GridSample is there since 16
OUTPUTS = ("tokens", "pooled", "rois")
TOLERANCE = 1e-4  # relative, of every output, against PyTorch
LARGEST = 2**31  # bytes of a protobuf file


class _Outputs(nn.Module):
    """The outputs that an ONNX file has: all but the hidden states."""

    def __init__(self, encoder: SparseFormer) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        output = self.encoder(images)
        return output.tokens, output.pooled, output.rois


def export_onnx(encoder: SparseFormer, file: str | Path) -> dict[str, float]:
    """Writes `file` with the input "images" and the outputs "tokens", "pooled", "rois" (see EncoderOutput).

    Batch, height and width are free. The configuration, with the preprocessing, is the metadata "config" (JSON).
    The file gets its name only when ONNX Runtime computes with it what PyTorch computes, at another batch and image
    size than it was traced with.

    Args:
        encoder: float32, on the CPU; it is put into evaluation mode.
        file: where to write; an existing file is replaced.

    Returns:
        The relative difference between ONNX Runtime and PyTorch for each output: |a − b| / |b| (2-norms).

    Raises:
        UserError: the extra `export` is not installed, the encoder is not float32, or too large for one file (2 GB).
        RuntimeError: ONNX Runtime computes something else.
    """
    _check(encoder)
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{os.getpid()}.{file.name}")
    try:
        _write(encoder.eval(), temporary)
        differences = compare(encoder, temporary)
        if not all(difference < TOLERANCE for difference in differences.values()):
            raise RuntimeError(f"ONNX Runtime differs from PyTorch by {differences}: {file} was not written.")
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
    return differences


def _check(encoder: SparseFormer) -> None:
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"ONNX export needs {error.name}: pip install 'sparse-vlm[export]'.") from error
    dtype = encoder.stem.conv.weight.dtype
    if dtype != torch.float32:
        raise UserError(f"Only float32 encoders are exported, this one is {dtype}: call encoder.float() first.")
    if 4 * encoder.num_parameters >= LARGEST:
        raise UserError(
            f"An encoder of {encoder.num_parameters / 1e6:.0f}M parameters does not fit into one ONNX file (2 GB)."
        )


def _write(encoder: SparseFormer, file: Path) -> None:
    side = encoder.config.preprocessing.crop
    sizes = {0: torch.export.Dim("batch"), 2: torch.export.Dim("height"), 3: torch.export.Dim("width")}
    program = torch.onnx.export(
        _Outputs(encoder).eval(),
        (torch.randn(2, 3, side, side),),
        input_names=["images"],
        output_names=OUTPUTS,
        dynamic_shapes={"images": sizes},
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    program.model.metadata_props["config"] = json.dumps(encoder.config.to_dict())
    program.save(file, external_data=False)


@torch.no_grad()
def compare(encoder: SparseFormer, file: str | Path) -> dict[str, float]:
    """The relative difference between ONNX Runtime and PyTorch for each output, on noise of a size of its own."""
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    side = encoder.config.preprocessing.crop
    images = torch.randn(3, 3, side + 19, side - 5, generator=torch.Generator().manual_seed(0))
    found = session.run(OUTPUTS, {"images": images.numpy()})
    expected = _Outputs(encoder)(images)
    return {
        name: ((torch.from_numpy(theirs) - ours).norm() / ours.norm()).item()
        for name, theirs, ours in zip(OUTPUTS, found, expected, strict=True)
    }
