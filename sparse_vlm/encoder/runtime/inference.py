"""Faster inference for SparseFormers and dense ViTs: packed weights on a CPU, CUDA graphs on a GPU."""

import torch
from torch import Tensor, nn

from sparse_vlm.encoder.float32 import Float32Linear
from sparse_vlm.encoder.runtime.cuda_graphs import CudaRecorder, replay_from_graphs
from sparse_vlm.errors import UserError


class PackedLinear(nn.Module):
    """A Linear whose float32 weight has the memory layout of oneDNN's matrix product. It has no gradients.

    An ordinary Linear reorders its weight in every call, which is expensive if few rows meet a large weight.

    Args:
        linear: an `nn.Linear` or `Float32Linear`, float32, on the CPU. Its weight is copied; the bias is shared.
    """

    weight: Tensor

    def __init__(self, linear: nn.Linear | Float32Linear) -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())
        self.bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, inputs: Tensor) -> Tensor:
        """float32[…, in] -> float32[…, out]"""
        return torch.ops.mkldnn._linear_pointwise(inputs, self.weight, self.bias, "none", [], "")

    def _save_to_state_dict(self, destination: object, prefix: str, keep_vars: bool) -> None:
        raise UserError(
            f"{prefix}weight is packed for inference and cannot be saved: save the model before optimize_for_inference."
        )


def optimize_for_inference(model: nn.Module) -> None:
    """Make inference faster, in place. The model is switched to evaluation mode and cannot be trained afterwards.

    On a CPU, the weights of all Linears are packed. Outputs differ only by rounding (relative error about 1e-5). This
    is worthwhile for one image at a time, see docs/encoder/speed.md. The model cannot be saved afterwards. Subclasses
    of Linear are left unchanged.

    On a CUDA device, `forward`, and `hidden_states` of a SparseFormer, are replayed as CUDA graphs, one for each shape
    and dtype of the images; see `GraphedMethod`. Outputs are identical. Weights are unchanged and can be saved.

    Args:
        model: e.g. a SparseFormer or a timm VisionTransformer; float32 on the CPU, any dtype on a CUDA device.
    """
    devices = {weight.device for weight in model.parameters()}
    if {device.type for device in devices} == {"cuda"} and len(devices) == 1:
        replay_from_graphs(model, CudaRecorder())
        return
    if not torch.backends.mkldnn.is_available():
        raise UserError("optimize_for_inference needs a PyTorch build with oneDNN (mkldnn).")
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32 or parameter.device.type != "cpu":
            raise UserError(
                "optimize_for_inference needs a float32 model on the CPU, or a model of any dtype on one CUDA device, "
                f"but {name} is {parameter.dtype} on {parameter.device}: call model.float().cpu() first."
            )
    _pack(model.eval().requires_grad_(False))


def _pack(module: nn.Module) -> None:
    for name, child in module.named_children():
        if type(child) is nn.Linear or type(child) is Float32Linear:
            setattr(module, name, PackedLinear(child))
        else:
            _pack(child)
