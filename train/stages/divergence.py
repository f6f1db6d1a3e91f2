"""A run that diverges ends with one sentence, before anything of it is saved."""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from sparse_vlm.errors import UserError

UNWATCHED = "grad_norm"  # with a loss scale, of --fp16, an infinite one is a step left out and no divergence


def require_finite(values: Mapping[str, object], step: int) -> None:
    """Whether all that was measured at a step are finite numbers.

    Raises:
        UserError: the first that is not.
    """
    for name, value in values.items():
        if isinstance(value, float) and not math.isfinite(value) and name != UNWATCHED:
            raise _diverged(f"{name} is {value:g}", step)


def require_finite_weights(finite: Tensor, step: int) -> None:
    """Whether a model may be saved.

    Args:
        finite: bool, of `weights_are_finite`, of all processes.
        step: for the error.

    Raises:
        UserError: it has weights that are NaN or infinite.
    """
    if not finite.all():
        raise _diverged("weights are not finite", step)


def weights_are_finite(parameters: Iterable[nn.Parameter]) -> Tensor:
    """bool[1] on their device; of ZeRO-3's parameters those that this process holds."""
    held = [getattr(parameter, "ds_tensor", parameter) for parameter in parameters]
    return torch.stack([tensor.detach().isfinite().all() for tensor in held]).all().unsqueeze(0)


def _diverged(what: str, step: int) -> UserError:
    return UserError(
        f"Training has diverged: {what} at step {step}. Nothing was published. Start in another --output_dir with a "
        "lower --learning_rate or a longer --warmup_ratio."
    )
