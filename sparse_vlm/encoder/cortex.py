"""The cortex: the last blocks of a timm VisionTransformer, with its norm, pooling and head."""

from functools import partial
from typing import Any

import timm
import torch
from timm import layers
from timm.layers import LayerNorm
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.autograd import Function
from torch.utils.checkpoint import checkpoint

from sparse_vlm.encoder.config import CortexConfig
from sparse_vlm.errors import UserError, unknown_choice

SLOPE = 1.702
SATURATED = 60.0  # σ(60) rounds to 1 in every dtype, and exp(60) is still finite in float32


def build_trunk(config: CortexConfig) -> VisionTransformer:
    """Build the timm VisionTransformer that `config` describes, with random weights."""
    options = dict(config.options)
    if torch.get_default_device().type == "meta":  # where timm's initialisation changes nothing, but takes a second
        options["weight_init"] = "skip"
    if config.norm_eps is not None:
        options["norm_layer"] = partial(LayerNorm, eps=config.norm_eps)
    if not timm.is_model(config.architecture):
        raise unknown_choice("timm architecture", config.architecture, timm.list_models("*vit*"))
    try:
        trunk = timm.create_model(
            config.architecture,
            pretrained=False,
            depth=config.depth,
            embed_dim=config.width,
            num_heads=config.heads,
            num_classes=config.head_dim,
            **options,
        )
    except TypeError as error:
        raise UserError(f"timm cannot build {config.architecture} with {options}: {error}.") from error
    if type(trunk) is not VisionTransformer:  # a subclass may treat its tokens differently
        raise UserError(
            f"{config.architecture} is a {type(trunk).__name__}, but a cortex needs the blocks of a VisionTransformer."
        )
    if config.head_dim and not config.head_bias:
        trunk.head = nn.Linear(config.width, config.head_dim, bias=False)
    fuse_quick_gelu(trunk)
    return trunk


def run_blocks(trunk: VisionTransformer, tokens: Tensor, count: int | None = None) -> tuple[Tensor, ...]:
    """Run the blocks of a timm VisionTransformer, without norm, pooling and head.

    With `trunk.grad_checkpointing`, the backward pass recomputes them.

    Args:
        trunk: the VisionTransformer.
        tokens: float[B, n, C], the input of the first block.
        count: run only the first `count` blocks; None for all.

    Returns:
        The hidden states, float[B, n, C] each: the input of the first block, then the output of each block.
    """
    states = [tokens]
    for block in list(trunk.blocks)[:count]:
        recompute = trunk.grad_checkpointing and torch.is_grad_enabled()
        states.append(checkpoint(block, states[-1], use_reentrant=False) if recompute else block(states[-1]))
    return tuple(states)


class Cortex(nn.Module):
    """Latent tokens -> hidden states, through the blocks of a timm VisionTransformer.

    As many CLS and register tokens as the architecture has are prepended to the latent tokens. Blocks, final norm,
    pooling and head are timm's code.

    Args:
        config: configuration of the cortex.
    """

    def __init__(self, config: CortexConfig) -> None:
        super().__init__()
        self.trunk = build_trunk(config)
        # The latent tokens replace everything before the blocks.
        self.trunk.patch_embed = nn.Identity()
        self.trunk.norm_pre = nn.Identity()
        self.trunk.pos_embed = None
        self.trunk.cls_token = None
        self.trunk.reg_token = None
        self.num_prefix_tokens: int = self.trunk.num_prefix_tokens
        registers = self.num_register_tokens = int(self.trunk.num_reg_tokens)
        has_cls = self.num_prefix_tokens > registers
        self.cls_embedding = nn.Parameter(torch.zeros(1, config.width)) if has_cls else None
        self.register_embeddings = nn.Parameter(torch.zeros(registers, config.width)) if registers else None

    def pool(self, tokens: Tensor) -> Tensor:
        """Output of the last block float[B, prefix + n, C] -> float[B, D], normalised, pooled and projected."""
        return self.trunk.forward_head(self.trunk.norm(tokens))

    def forward(self, tokens: Tensor, count: int | None = None) -> tuple[Tensor, ...]:
        """Run the blocks, without norm, pooling and head.

        Args:
            tokens: latent tokens float[B, n, C] from the focusing transformer.
            count: run only the first `count` blocks; None for all.

        Returns:
            The hidden states, float[B, prefix + n, C] each: the input of the first block, then the output of each
            block. The order of tokens is CLS, registers, latent tokens.
        """
        for prefix in (self.register_embeddings, self.cls_embedding):
            if prefix is not None:
                tokens = torch.cat([prefix.to(tokens.dtype).expand(tokens.shape[0], -1, -1), tokens], dim=1)
        return run_blocks(self.trunk, tokens, count)


class QuickGELU(layers.QuickGELU):
    """x·σ(1.702·x), as timm's `QuickGELU`, which passes over the activations three times and stores three tensors.

    The derivative of softplus is σ, so torch's kernel for softplus' backward pass, grad·σ(β·x), computes it at once for
    grad = x. Its own derivative is that of SiLU at 1.702·x. Compilers fuse the formula themselves, and ONNX Runtime
    recognises it, so they get the formula.
    """

    def forward(self, input: Tensor) -> Tensor:
        """float[…] -> float[…], each value on its own."""
        if torch.compiler.is_compiling():
            return super().forward(input)
        return _OneKernel.apply(input)


class _OneKernel(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.ops.aten.softplus_backward(x, x, SLOPE, SATURATED)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        scaled = SLOPE * ctx.saved_tensors[0]
        if torch.is_grad_enabled():  # a second derivative is wanted, which torch's kernel lacks
            gate = scaled.sigmoid()
            return grad * gate * (1 + scaled * (1 - gate))
        return torch.ops.aten.silu_backward(grad, scaled)


def fuse_quick_gelu(model: nn.Module) -> None:
    """Replace every QuickGELU of timm inside `model` by the one above, in place."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is layers.QuickGELU:
                setattr(module, name, QuickGELU())
