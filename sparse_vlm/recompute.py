"""Activation checkpointing of the encoder, in the form in which transformers' Trainer requests it."""

from collections.abc import Mapping
from typing import Any

from sparse_vlm.encoder.cortex import Cortex
from sparse_vlm.errors import UserError


class RecomputesBlocks:
    """Mixin for a module that transformers' Trainer trains with `--activation_checkpointing True`."""

    @property
    def recomputed_cortex(self) -> Cortex:
        """The cortex whose blocks are recomputed."""
        raise NotImplementedError

    def activation_checkpointing_enable(
        self,
        activation_checkpointing_kwargs: Mapping[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """Recompute blocks in the backward pass; transformers' Trainer calls this. See `recompute_blocks`."""
        recompute_blocks(self.recomputed_cortex, activation_checkpointing_kwargs, every_n_layers, offload)


def recompute_blocks(cortex: Cortex, options: Mapping[str, Any] | None, every_n_layers: int, offload: bool) -> None:
    """Make the backward pass recompute each block of the cortex instead of keeping its activations.

    This saves most of the memory of activations for about one more forward pass. The gradients are the same.

    Args:
        cortex: the cortex of a student or of a timm model.
        options: of `torch.utils.checkpoint.checkpoint`; only the fixed values may be given.
        every_n_layers, offload: transformers' --activation_checkpointing_kwargs; only 1 and False are supported.

    Raises:
        UserError: other settings.
    """
    asked = {**(options or {}), "every_n_layers": every_n_layers, "offload": offload}
    possible = {"use_reentrant": False, "every_n_layers": 1, "offload": False}
    if possible | asked != possible:
        raise UserError(
            f"--activation_checkpointing_kwargs is {asked}, but the encoder recomputes every block, with use_reentrant "
            "false and without offloading. Leave it out."
        )
    cortex.trunk.set_grad_checkpointing(True)
