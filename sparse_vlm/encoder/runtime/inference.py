"""Faster inference, for our encoders and the dense ViTs that they are compared with: packed weights on a CPU, CUDA
graphs on a GPU."""

import torch
from torch import Tensor, nn

from sparse_vlm.encoder.float32 import Float32Linear
from sparse_vlm.encoder.runtime.cuda_graphs import CudaRecorder, replay_from_graphs
from sparse_vlm.errors import UserError


class PackedLinear(nn.Module):
    """A Linear of float32 weights that lie as oneDNN's matrix product reads them. Without gradients.

    An ordinary Linear rearranges its weight at every call, which counts where few rows meet a large weight.

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
            f"{prefix}weight is packed for inference and cannot be saved: save before optimize_for_inference."
        )


def optimize_for_inference(model: nn.Module) -> None:
    """Makes inference faster, in place; the model is put into evaluation mode and cannot be trained afterwards.

    On a CPU the weights of all Linears are packed. Outputs differ by rounding alone (about 1e-5, relative). Pays for
    one image at a time, see docs/encoder/speed.md. The model cannot be saved afterwards. Subclasses of Linear stay as
    they are.

    On a CUDA device `forward`, and a SparseFormer's `hidden_states`, are replayed as CUDA graphs: one for each shape
    and dtype of the images, see `GraphedMethod`. Outputs are the same numbers; weights stay what they are, and can be
    saved.

    Args:
        model: e.g. a SparseFormer or a timm VisionTransformer; float32 on the CPU, any dtype on a CUDA device.

    Raises:
        UserError: the model is on several devices, on another kind of device, or of another dtype on the CPU; or
            PyTorch was built without oneDNN.
    """
    devices = {weight.device for weight in model.parameters()}
    if {device.type for device in devices} == {"cuda"} and len(devices) == 1:
        replay_from_graphs(model, CudaRecorder())
        return
    if not torch.backends.mkldnn.is_available():
        raise UserError("optimize_for_inference needs a PyTorch that was built with oneDNN (mkldnn).")
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32 or parameter.device.type != "cpu":
            raise UserError(
                "optimize_for_inference takes float32 models on the CPU, and models of any dtype on one CUDA device, "
                f"but {name} is {parameter.dtype} on {parameter.device}: call model.float().cpu() first."
            )
    _pack(model.eval().requires_grad_(False))


def _pack(module: nn.Module) -> None:
    for name, child in module.named_children():
        if type(child) is nn.Linear or type(child) is Float32Linear:
            setattr(module, name, PackedLinear(child))
        else:
            _pack(child)
