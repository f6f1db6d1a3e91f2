"""Stop a run that has diverged, before anything of it is saved."""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from sparse_vlm.errors import UserError

UNWATCHED = "grad_norm"  # under --fp16, an infinite one means a skipped step, not divergence


def require_finite(values: Mapping[str, object], step: int) -> None:
    """Check that everything measured at a step is finite.

    Raises:
        UserError: a value is not finite; the first one is named.
    """
    for name, value in values.items():
        if isinstance(value, float) and not math.isfinite(value) and name != UNWATCHED:
            raise _diverged(f"{name} is {value:g}", step)


def require_finite_weights(finite: Tensor, step: int) -> None:
    """Check that a model may be saved.

    Args:
        finite: bool, the results of `weights_are_finite` of all processes.
        step: the training step, for the message.

    Raises:
        UserError: some weights are NaN or infinite.
    """
    if not finite.all():
        raise _diverged("weights are not finite", step)


def weights_are_finite(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Return bool[1] on the parameters' device. Under ZeRO-3, only this process' shards are checked."""
    held = [getattr(parameter, "ds_tensor", parameter) for parameter in parameters]
    return torch.stack([tensor.detach().isfinite().all() for tensor in held]).all().unsqueeze(0)


def _diverged(what: str, step: int) -> UserError:
    return UserError(
        f"Training has diverged: {what} at step {step}. Nothing was published. Start in another --output_dir with a "
        "lower --learning_rate or a longer --warmup_ratio."
    )
