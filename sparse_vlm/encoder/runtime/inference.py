"""Preparation of a model for inference alone: CUDA graphs on a GPU, packed weights on a CPU."""

from torch import nn

from sparse_vlm.encoder.runtime.cuda_graphs import CudaRecorder, replay_from_graphs
from sparse_vlm.encoder.runtime.packed_linears import pack_linears
from sparse_vlm.errors import UserError


def optimize_for_inference(model: nn.Module) -> None:
    """Make a model faster that will only run from now on, in place.

    On a GPU, `forward`, and a SparseFormer's `hidden_states`, are replayed as one graph for each shape and dtype of the
    images, see `GraphedMethod`: outputs are identical. On a CPU, the weights of all Linears are packed, see
    `PackedLinear`: outputs are identical in bfloat16, and differ by rounding in float32. The model is put into
    evaluation mode. It can still be saved, but not trained, copied or moved.

    Args:
        model: e.g. a SparseFormer or a timm VisionTransformer, on a CPU (float32 or bfloat16) or on one CUDA device.

    Raises:
        UserError: the model is on several devices, or on another one, or this CPU cannot pack its weights.
    """
    devices = {weight.device for weight in model.parameters()}
    kind = next(iter(devices)).type if len(devices) == 1 else ""
    if kind == "cuda":
        replay_from_graphs(model, CudaRecorder())
    elif kind == "cpu":
        model.eval().requires_grad_(False)
        pack_linears(model)
    else:
        found = ", ".join(sorted(map(str, devices)))
        raise UserError(
            f"optimize_for_inference needs a model on the CPU or on one CUDA device, but this one is on {found}."
        )
