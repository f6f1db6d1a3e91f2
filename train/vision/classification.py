"""Classification metrics in the form that transformers' Trainer expects: top-1 accuracy and AUROC."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import EvalPrediction

from sparse_vlm.data.images.labels import Labels
from sparse_vlm.errors import UserError

logger = logging.getLogger(__name__)
Metric = Callable[[EvalPrediction], dict[str, Any]]


def auroc(scores: NDArray[np.floating], labels: NDArray[np.floating]) -> float | None:
    """Probability that a random positive has a higher score than a random negative; ties count half.

    This is the Mann–Whitney statistic: (sum of the positives' ranks − p (p + 1) / 2) / (p n), where ties have the mean
    of their ranks.

    Args:
        scores: float[N], on any scale.
        labels: [N], 0 or 1.

    Returns:
        A value in [0, 1]; None (undefined) if all labels are equal.
    """
    positive = labels > 0.5
    positives = int(positive.sum())
    negatives = len(labels) - positives
    if not positives or not negatives:
        return None
    _, position, counts = np.unique(scores.astype(np.float64), return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2
    return float((ranks[position][positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def over_readable(metric: Metric, loss: Callable[[Tensor, Tensor], Tensor]) -> Metric:
    """Restrict a metric to the readable images, and add the loss and the numbers of images and unreadable ones.

    Args:
        metric: a function of logits and labels.
        loss: logits and labels -> float[].

    Returns:
        A metric whose labels are (labels, bool[N] that is True for readable images), over all held-out images. It
        raises UserError if none is readable.
    """

    def measured(prediction: EvalPrediction) -> dict[str, Any]:
        given: Any = prediction.label_ids  # transformers declares one array
        labels, readable = given
        if not readable.any():
            raise UserError(f"None of the {len(readable)} held-out images (--eval_data_path) can be read.")
        logits, labels = np.asarray(prediction.predictions)[readable], labels[readable]
        found = {"loss": loss(torch.from_numpy(logits), torch.from_numpy(labels)).item()}
        found |= metric(EvalPrediction(logits, labels))
        return found | {"images": len(labels), "unreadable": int((~readable).sum())}

    return measured


def metric_names(labels: Labels) -> tuple[str, ...]:
    """Return the names of the metrics on these images, including undefined ones."""
    return ("loss", "auroc", *(f"auroc_{name}" for name in labels.classes)) if labels.multi_label else ("loss", "top1")


def undefined_metrics(labels: Labels) -> dict[str, str]:
    """Return the metrics that are undefined on these held-out images -> the reason."""
    if not labels.multi_label:
        return {}
    same = (labels.values == labels.values[0]).all(dim=0).tolist()
    why = "all held-out images have the same label of"
    undefined = {f"auroc_{name}": f"{why} {name}" for name, alike in zip(labels.classes, same, strict=True) if alike}
    return undefined | ({"auroc": f"{why} each class"} if all(same) else {})


def top_1(prediction: EvalPrediction) -> dict[str, float]:
    """Share of the images whose highest logit belongs to their class."""
    logits, labels = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
    return {"top1": float((logits.argmax(-1) == labels).mean())}


def auroc_metric(classes: Sequence[str]) -> Metric:
    """Return the metric: the mean AUROC, the number of classes in this mean, and the AUROC of each class.

    The AUROC of a class without positives or without negatives is undefined: it is None, not in the mean, and logged.
    """

    def metric(prediction: EvalPrediction) -> dict[str, float | None]:
        logits, labels = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
        each = {name: auroc(logits[:, index], labels[:, index]) for index, name in enumerate(classes)}
        defined = [value for value in each.values() if value is not None]
        if len(defined) < len(each):
            absent = ", ".join(name for name, value in each.items() if value is None)
            logger.warning(
                "No AUROC for %d of %d classes, because all measured images have the same label: %s",
                len(each) - len(defined),
                len(each),
                absent,
            )
        mean = sum(defined) / len(defined) if defined else None
        named = {f"auroc_{name}": value for name, value in each.items()}
        return {"auroc": mean, "classes_with_auroc": len(defined), **named}

    return metric
