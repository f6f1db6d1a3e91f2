"""Export a SparseFormer to ONNX, and verify the file with ONNX Runtime. Needs the extra `export`."""

import ast
import inspect
import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from sparse_vlm.encoder.float32 import Float32Module
from sparse_vlm.encoder.model import SparseFormer, starting_rois
from sparse_vlm.encoder.rois import lay_out_rois
from sparse_vlm.encoder.runtime.packed_linears import PackedLinear
from sparse_vlm.errors import UserError, lost_by_optimisation
from sparse_vlm.files import new_file

OPSET = 20  # the first opset with Gelu; GridSample exists since 16
ROIS = "initial_rois"
OUTPUTS = ("tokens", "pooled", "rois")
TOLERANCE = 1e-4  # relative difference from PyTorch, for every output
TOLERANCE_INT8 = 0.2  # rounding alone stays below this
SCOPES = "pkg.torch.onnx.name_scopes"  # metadata in which torch records the modules that an operation belongs to
LARGEST = 2**31  # maximum size of a protobuf file, in bytes


class _Outputs(nn.Module):
    """An encoder that returns the outputs of the ONNX file: all but the hidden states."""

    def __init__(self, encoder: SparseFormer) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor, rois: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        output = self.encoder(images, rois)
        return output.tokens, output.pooled, output.rois


def export_onnx(
    encoder: SparseFormer, file: str | Path, *, int8: bool = False, rois_input: bool = False
) -> dict[str, float]:
    """Write an ONNX file with the input "images" and the outputs "tokens", "pooled" and "rois" (see `EncoderOutput`).

    Batch size, height and width are dynamic. The configuration, including the preprocessing, is stored as JSON in the
    metadata entry "config". The file is only written if the outputs of ONNX Runtime match those of PyTorch, at a batch
    size and image size other than those used for tracing.

    Args:
        encoder: float32, on the CPU; it is switched to evaluation mode.
        file: output path; an existing file is replaced.
        int8: compute Linears in int8, except those that produce coordinates. Weights are quantised per output channel
            (to 7 bits, so that CPUs without VNNI do not overflow), inputs by their range at run time.
        rois_input: add the input "initial_rois", float32[batch, n, 4] with any n ≥ 1, which replaces the learned
            initial RoIs.

    Returns:
        The relative difference between ONNX Runtime and PyTorch for each output: |a − b| / |b| (2-norms).

    Raises:
        RuntimeError: the outputs of ONNX Runtime do not match.
    """
    _check(encoder)
    with new_file(file) as temporary:
        _write(encoder.eval(), temporary, int8=int8, rois_input=rois_input)
        differences = compare(encoder, temporary)
        if not all(difference < (TOLERANCE_INT8 if int8 else TOLERANCE) for difference in differences.values()):
            raise RuntimeError(f"ONNX Runtime differs from PyTorch by {differences}. {file} was not written.")
    return differences


def require_onnx() -> None:
    """Check that the extra `export` is installed. Call this before long work."""
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"ONNX export needs {error.name}: pip install 'sparse-vlm[export]'.") from error


def _check(encoder: SparseFormer) -> None:
    require_onnx()
    if any(isinstance(module, PackedLinear) for module in encoder.modules()):
        raise lost_by_optimisation("exported")
    dtype = encoder.stem.conv.weight.dtype
    if dtype != torch.float32:
        raise UserError(f"Only float32 encoders can be exported, this one is {dtype}: call encoder.float() first.")
    if 4 * encoder.num_parameters >= LARGEST:
        raise UserError(
            f"An encoder with {encoder.num_parameters / 1e6:.0f}M parameters does not fit into one ONNX file (2 GB)."
        )


def _write(encoder: SparseFormer, file: Path, *, int8: bool, rois_input: bool) -> None:
    side, model = encoder.config.preprocessing.crop, _Outputs(encoder).eval()
    inputs = {"images": torch.randn(2, 3, side, side)}
    sizes = {"images": {0: torch.export.Dim("batch"), 2: torch.export.Dim("height"), 3: torch.export.Dim("width")}}
    if rois_input:
        rois = starting_rois(encoder.config, inputs["images"], None, 5)
        assert rois is not None
        inputs[ROIS] = rois.contiguous()
        sizes[ROIS] = {0: torch.export.Dim.AUTO, 1: torch.export.Dim("tokens")}
    write_onnx(
        model,
        inputs,
        file,
        OUTPUTS,
        sizes=sizes,
        metadata={"config": json.dumps(encoder.config.to_dict())},
    )
    if int8:
        quantise(file, model)


def write_onnx(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    file: Path,
    outputs: Sequence[str],
    *,
    sizes: Mapping[str, dict[int, Any]] | None = None,
    metadata: dict[str, str] | None = None,
    external_data: bool = False,
) -> None:
    """Write any model to an ONNX file.

    Args:
        model: in evaluation mode, float32, on the CPU.
        inputs: example inputs for tracing by name, in the order of the model's arguments.
        file: output path.
        outputs: names of the outputs.
        sizes: dynamic dimensions of each input, as `torch.export.Dim`; None for fixed shapes.
        metadata: metadata entries of the file.
        external_data: write the weights to a second file, `file` with ".data" appended, which may exceed `LARGEST`.
    """
    shapes = None if sizes is None else inspect.signature(model.forward).bind(*sizes.values()).arguments
    program = torch.onnx.export(
        model,
        tuple(inputs.values()),
        input_names=list(inputs),
        output_names=outputs,
        dynamic_shapes=None if shapes is None else tuple(shapes.values()),  # those of *args are a tuple in it
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    program.model.metadata_props.update(metadata or {})
    program.save(file, external_data=external_data)


def quantise(file: Path, model: nn.Module, external_data: bool = False) -> None:
    """Replace the file by one whose Linears compute in int8, by ONNX Runtime's dynamic quantisation.

    Args:
        file: written by `write_onnx`.
        model: the exported model. Linears inside a Float32Module keep float32, and so does the head, which has one row
            per image and is another operation in ONNX.
        external_data: the file has its weights in a second file. The result is a single file.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    graph = onnx.load(file)
    linears = _quantisable(model)
    nodes = [node.name for node in graph.graph.node if node.op_type == "MatMul" and linears & _modules_of(node)]
    graph.graph.ClearField("value_info")  # shapes from before torch's own optimisations; inferred again below
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        bare, prepared = Path(folder, "bare.onnx"), Path(folder, "prepared.onnx")
        onnx.save(graph, bare, save_as_external_data=external_data)
        # Folds transposed weights into constants: otherwise a weight that is used in several places is not recognised
        # as one.
        quant_pre_process(bare, prepared, skip_symbolic_shape=True, save_as_external_data=external_data)
        quantize_dynamic(
            prepared, file, per_channel=True, reduce_range=True, weight_type=QuantType.QInt8, nodes_to_quantize=nodes
        )
    if external_data:
        external_file(file).unlink()


def external_file(file: Path) -> Path:
    """Return the second file of a model with external data."""
    return file.with_name(f"{file.name}.data")


def _quantisable(model: nn.Module) -> set[str]:
    """Names of the Linears that do not produce coordinates."""
    float32 = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, Float32Module))
    linears = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    return {name for name in linears if not name.startswith(float32)}


def _modules_of(node: Any) -> set[str]:
    """Names of the modules, outer and inner, that an ONNX node belongs to."""
    return {name for entry in node.metadata_props if entry.key == SCOPES for name in ast.literal_eval(entry.value)}


@torch.no_grad()
def embedding_cosines(encoder: SparseFormer, file: str | Path, images: Iterable[Tensor]) -> Tensor:
    """Cosine of ONNX Runtime's embedding of each image with PyTorch's, float32[N].

    Args:
        encoder: the exported encoder.
        file: written by `export_onnx` without `rois_input`.
        images: float32[3, H, W] each, preprocessed by `encoder.transform`.
    """
    session = _session(file)
    cosines = []
    for image in images:
        theirs = session.run(["pooled"], {"images": image[None].numpy()})[0]
        cosines.append(cosine_similarity(torch.from_numpy(theirs), encoder(image[None]).pooled))
    return torch.cat(cosines)


def _session(file: str | Path) -> Any:
    import onnxruntime

    return onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])


@torch.no_grad()
def compare(encoder: SparseFormer, file: str | Path) -> dict[str, float]:
    """Relative difference between ONNX Runtime and PyTorch for each output, measured on noise."""
    session = _session(file)
    side = encoder.config.preprocessing.crop
    images = torch.randn(3, 3, side + 19, side - 5, generator=torch.Generator().manual_seed(0))
    inputs = {"images": images}
    if len(session.get_inputs()) > 1:
        inputs[ROIS] = lay_out_rois(7).expand(3, -1, -1)
    found = session.run(OUTPUTS, {name: value.numpy() for name, value in inputs.items()})
    expected = _Outputs(encoder)(*inputs.values())
    for name, ours in zip(OUTPUTS, expected, strict=True):
        if not ours.isfinite().all():
            raise UserError(f"The encoder's {name} are not finite: its weights come from a training run that diverged.")
    return {
        name: ((torch.from_numpy(theirs) - ours).norm() / ours.norm()).item()
        for name, theirs, ours in zip(OUTPUTS, found, expected, strict=True)
    }
