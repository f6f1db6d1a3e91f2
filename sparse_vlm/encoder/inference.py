"""Faster inference on a CPU for any model made of Linears: ours, and the dense ViTs that it is compared with."""

import torch
from torch import Tensor, nn

from sparse_vlm.encoder.float32 import Float32Linear
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
    """Packs the weights of all Linears in place, for inference with few tokens at a time on a CPU.

    Outputs differ by rounding alone (about 1e-5, relative). Pays for one image at a time, see docs/encoder_speed.md.
    Afterwards the model can neither be trained nor saved. Subclasses of Linear stay as they are.

    Args:
        model: float32, on the CPU, e.g. a SparseFormer or a timm VisionTransformer; put into evaluation mode.

    Raises:
        UserError: the model is not float32 on the CPU, or PyTorch was built without oneDNN.
    """
    if not torch.backends.mkldnn.is_available():
        raise UserError("optimize_for_inference needs a PyTorch that was built with oneDNN (mkldnn).")
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32 or parameter.device.type != "cpu":
            raise UserError(
                f"optimize_for_inference takes float32 models on the CPU, but {name} is {parameter.dtype} on "
                f"{parameter.device}: call model.float().cpu() first."
            )
    _pack(model.eval().requires_grad_(False))


def _pack(module: nn.Module) -> None:
    for name, child in module.named_children():
        if type(child) is nn.Linear or type(child) is Float32Linear:
            setattr(module, name, PackedLinear(child))
        else:
            _pack(child)
