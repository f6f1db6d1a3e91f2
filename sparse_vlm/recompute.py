"""Activation checkpointing as transformers' Trainer asks a model for it (`--activation_checkpointing`)."""

from collections.abc import Mapping
from typing import Any

from sparse_vlm.encoder.cortex import Cortex
from sparse_vlm.errors import UserError


def recompute_blocks(cortex: Cortex, options: Mapping[str, Any] | None, every_n_layers: int, offload: bool) -> None:
    """From now on the backward pass computes each block of the cortex again instead of keeping what it computed.

    Saves most of the memory that activations take, for about one more forward pass. The gradients are the same.

    Args:
        cortex: of a student or a timm model.
        options: of `torch.utils.checkpoint.checkpoint`, None for its own; what is there already may be stated.
        every_n_layers, offload: transformers' --activation_checkpointing_kwargs; 1 and False alone are possible.

    Raises:
        UserError: other settings.
    """
    asked = {**(options or {}), "every_n_layers": every_n_layers, "offload": offload}
    possible = {"use_reentrant": False, "every_n_layers": 1, "offload": False}
    if possible | asked != possible:
        raise UserError(
            f"--activation_checkpointing_kwargs asks for {asked}, but the encoder computes every block again, with "
            "use_reentrant false and nothing offloaded. Leave it out."
        )
    cortex.trunk.set_grad_checkpointing(True)
