"""The cortex equals timm's code from the blocks to the head, and its QuickGELU timm's, gradients included."""

import copy

import pytest
import timm
import torch
from timm import layers
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sparse_vlm.encoder import CortexConfig
from sparse_vlm.encoder.cortex import Cortex, QuickGELU, fuse_quick_gelu
from sparse_vlm.errors import UserError


@pytest.mark.parametrize(
    "architecture",
    [
        "vit_base_patch16_clip_quickgelu_224",
        "vit_base_patch16_siglip_224",
        "vit_base_patch14_reg4_dinov2",
        "vit_medium_patch16_reg4_gap_256",
    ],
)
@torch.no_grad()
def test_the_cortex_computes_what_the_whole_vit_computes_after_its_embedding(architecture: str) -> None:
    """Run the same tokens through timm's forward pass (blocks to head) and through ours, with the same weights."""
    torch.manual_seed(0)
    whole = timm.create_model(architecture, depth=2, embed_dim=64, num_heads=2, num_classes=5).eval()
    config = CortexConfig(architecture, depth=2, width=64, heads=2, head_dim=5)
    cortex = Cortex(config).eval()
    kept = {key: value for key, value in whole.state_dict().items() if key in cortex.trunk.state_dict()}
    cortex.trunk.load_state_dict(kept)

    latent = torch.randn(2, 6, 64)
    entering = latent
    if cortex.register_embeddings is not None:
        nn.init.normal_(cortex.register_embeddings)
        entering = torch.cat([cortex.register_embeddings.expand(2, 4, -1), entering], dim=1)
    if cortex.cls_embedding is not None:
        nn.init.normal_(cortex.cls_embedding)
        entering = torch.cat([cortex.cls_embedding.expand(2, 1, -1), entering], dim=1)
    expected = whole.forward_head(whole.norm(whole.blocks(entering)))
    states = cortex(latent)
    torch.testing.assert_close(cortex.pool(states[-1]), expected)
    assert torch.equal(states[0], entering)
    assert len(states) == 3
    assert not {"pos_embed", "cls_token", "reg_token"} & cortex.trunk.state_dict().keys()
    assert cortex.num_prefix_tokens == whole.num_prefix_tokens == entering.shape[1] - 6


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"architecture": "vit_base_patch16_22"}, "Unknown timm architecture 'vit_base_patch16_22'. Did you mean"),
        ({"architecture": "resnet18", "options": {}}, "timm cannot build resnet18"),
        ({"options": {"init_valuez": 1}}, "timm cannot build vit_base_patch16_224 with {'init_valuez': 1}"),
        ({"architecture": "deit_tiny_distilled_patch16_224"}, "is a VisionTransformerDistilled"),
    ],
)
def test_other_architectures_are_refused(changes: dict, sentence: str) -> None:
    values = {"architecture": "vit_base_patch16_224", "depth": 1, "width": 64, "heads": 1}
    with pytest.raises(UserError) as caught:
        Cortex(CortexConfig(**(values | changes)))
    assert sentence in str(caught.value)


def test_without_outputs_the_head_is_empty() -> None:
    cortex = Cortex(CortexConfig("vit_base_patch16_224", depth=1, width=64, heads=1))
    assert isinstance(cortex.trunk.head, nn.Identity)
    assert cortex.pool(cortex(torch.randn(1, 3, 64))[-1]).shape == (1, 64)


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
    torch.testing.assert_close(QuickGELU()(given), exact.to(dtype))
    error, of_timm = ((module(given).double() - exact).norm() for module in (QuickGELU(), layers.QuickGELU()))
    assert dtype.itemsize > 2 or error < 0.9 * of_timm, "one rounding instead of three"


def test_infinite_and_undefined_inputs_behave_as_in_timm() -> None:
    given = torch.tensor([float("inf"), float("-inf"), float("nan")])
    torch.testing.assert_close(QuickGELU()(given), layers.QuickGELU()(given), equal_nan=True)


def test_gradients_are_those_of_the_formula() -> None:
    given = values(torch.float64)[::40].requires_grad_()
    assert torch.autograd.gradcheck(QuickGELU(), given[:-5])
    assert torch.autograd.gradgradcheck(QuickGELU(), given[:-5])
    for dtype in (torch.float32, torch.bfloat16):
        ours, theirs = values(dtype).requires_grad_(), values(dtype).requires_grad_()
        QuickGELU()(ours).square().sum().backward()
        layers.QuickGELU()(theirs).square().sum().backward()
        bound = 1e-5 if dtype == torch.float32 else 0.03
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=bound, atol=bound)


def test_one_kernel_computes_it_and_only_its_input_is_stored() -> None:
    given, stored = torch.randn(4), []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        stored.append(tensor)
        return tensor

    with Kernels() as kernels:
        QuickGELU()(given)
    assert kernels.names == ["aten::softplus_backward"]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        QuickGELU()(given.requires_grad_())
    assert [tensor.data_ptr() for tensor in stored] == [given.data_ptr()]


def test_exported_programs_contain_the_formula() -> None:
    """ONNX Runtime and compilers recognise it."""
    program = torch.export.export(QuickGELU(), (torch.randn(4),))
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert called == {"aten.mul.Tensor", "aten.sigmoid.default"}


@pytest.mark.parametrize(
    ("architecture", "fused"), [("vit_base_patch16_clip_quickgelu_224", 2), ("vit_base_patch16_clip_224", 0)]
)
def test_a_cortex_has_it_where_timm_has_quick_gelu(architecture: str, fused: int) -> None:
    cortex = Cortex(CortexConfig(architecture, depth=2, width=64, heads=2, head_dim=5))
    assert sum(type(module) is QuickGELU for module in cortex.modules()) == fused
    assert not any(type(module) is layers.QuickGELU for module in cortex.modules())


@torch.no_grad()
def test_a_fused_vit_computes_what_timm_computes() -> None:
    torch.manual_seed(0)
    plain = timm.create_model("vit_base_patch16_clip_quickgelu_224", depth=2, embed_dim=64, num_heads=2).eval()
    fused = copy.deepcopy(plain)
    fuse_quick_gelu(fused)
    images = torch.randn(2, 3, 224, 224)
    torch.testing.assert_close(fused(images), plain(images), rtol=1e-5, atol=1e-6)
    assert fused.state_dict().keys() == plain.state_dict().keys()
