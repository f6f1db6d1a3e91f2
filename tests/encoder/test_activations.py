"""The fused QuickGELU equals timm's, and so do its gradients."""

import copy

import pytest
import timm
import torch
from timm.layers import QuickGELU
from torch.utils._python_dispatch import TorchDispatchMode

from sparse_vlm.encoder import CortexConfig
from sparse_vlm.encoder.activations import FusedQuickGELU, fuse_quick_gelu
from sparse_vlm.encoder.cortex import Cortex


class Kernels(TorchDispatchMode):
    """Records the names of the operations that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def values(dtype: torch.dtype) -> torch.Tensor:
    """Numbers of every magnitude, saturated on both sides, and 0."""
    spread = torch.linspace(-40, 40, 4001, dtype=torch.float64)
    return torch.cat([spread, spread / 1000, torch.tensor([0.0, -1e4, 1e4, -60, 60])]).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_values_are_those_of_the_formula(dtype: torch.dtype) -> None:
    given = values(dtype)
    exact = given.double() * torch.sigmoid(1.702 * given.double())
    torch.testing.assert_close(FusedQuickGELU()(given), exact.to(dtype))
    error, of_timm = ((module(given).double() - exact).norm() for module in (FusedQuickGELU(), QuickGELU()))
    assert dtype.itemsize > 2 or error < 0.9 * of_timm, "one rounding instead of three"


def test_infinite_and_undefined_inputs_behave_as_in_timm() -> None:
    given = torch.tensor([float("inf"), float("-inf"), float("nan")])
    torch.testing.assert_close(FusedQuickGELU()(given), QuickGELU()(given), equal_nan=True)


def test_gradients_are_those_of_the_formula() -> None:
    given = values(torch.float64)[::40].requires_grad_()
    assert torch.autograd.gradcheck(FusedQuickGELU(), given[:-5])
    assert torch.autograd.gradgradcheck(FusedQuickGELU(), given[:-5])
    for dtype in (torch.float32, torch.bfloat16):
        ours, theirs = values(dtype).requires_grad_(), values(dtype).requires_grad_()
        FusedQuickGELU()(ours).square().sum().backward()
        QuickGELU()(theirs).square().sum().backward()
        torch.testing.assert_close(
            ours.grad, theirs.grad, **({} if dtype == torch.float32 else {"rtol": 0.03, "atol": 0.03})
        )


def test_one_kernel_computes_it_and_only_its_input_is_stored() -> None:
    given, stored = torch.randn(4), []
    with Kernels() as kernels:
        FusedQuickGELU()(given)
    assert kernels.names == ["aten::softplus_backward"]
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: stored.append(tensor) or tensor, lambda tensor: tensor
    ):
        FusedQuickGELU()(given.requires_grad_())
    assert [tensor.data_ptr() for tensor in stored] == [given.data_ptr()]


def test_exported_programs_contain_the_formula() -> None:
    """ONNX Runtime and compilers recognise it."""
    program = torch.export.export(FusedQuickGELU(), (torch.randn(4),))
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert called == {"aten.mul.Tensor", "aten.sigmoid.default"}


@pytest.mark.parametrize(
    ("architecture", "fused"), [("vit_base_patch16_clip_quickgelu_224", 2), ("vit_base_patch16_clip_224", 0)]
)
def test_a_cortex_has_it_where_timm_has_quick_gelu(architecture: str, fused: int) -> None:
    cortex = Cortex(CortexConfig(architecture, depth=2, width=64, heads=2, head_dim=5))
    assert sum(type(module) is FusedQuickGELU for module in cortex.modules()) == fused
    assert not any(type(module) is QuickGELU for module in cortex.modules())


@torch.no_grad()
def test_a_fused_vit_computes_what_timm_computes() -> None:
    torch.manual_seed(0)
    plain = timm.create_model("vit_base_patch16_clip_quickgelu_224", depth=2, embed_dim=64, num_heads=2).eval()
    fused = copy.deepcopy(plain)
    fuse_quick_gelu(fused)
    images = torch.randn(2, 3, 224, 224)
    torch.testing.assert_close(fused(images), plain(images), rtol=1e-5, atol=1e-6)
    assert fused.state_dict().keys() == plain.state_dict().keys()
