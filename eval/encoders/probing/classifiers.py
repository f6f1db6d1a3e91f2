"""Classifiers of frozen representations: a vote of the nearest training images, and a linear probe."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from sparse_vlm.errors import UserError

TEMPERATURE = 0.07
STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # scikit-learn's C: smaller is more regularised
HELD_OUT = 5  # one in five training images chooses the strength


def vote(test: Tensor, train: Tensor, labels: Tensor, neighbours: int = 20, temperature: float = TEMPERATURE) -> Tensor:
    """Classify images by a weighted vote of their nearest training images.

    Args:
        test: representations float[M, D] of any length.
        train: representations float[N, D].
        labels: class indices of the training images, int64[N].
        neighbours: training images that vote, at most N.
        temperature: a training image votes with the weight exp(cosine / temperature).

    Returns:
        int64[M] class indices.
    """
    train, classes = F.normalize(train.float(), dim=-1), int(labels.max()) + 1
    voted = []
    for part in F.normalize(test.float(), dim=-1).split(1024):
        cosine, nearest = (part @ train.T).topk(neighbours, dim=-1)
        votes = torch.zeros(len(part), classes).scatter_add_(1, labels[nearest], (cosine / temperature).exp())
        voted.append(votes.argmax(dim=-1))
    return torch.cat(voted)


class Probed(NamedTuple):
    """Result of a linear probe.

    Attributes:
        guesses: int64[M] class indices of the test images.
        strength: scikit-learn's C that was chosen.
    """

    guesses: Tensor
    strength: float


def linear_probe(test: Tensor, train: Tensor, labels: Tensor, strengths: Sequence[float] = STRENGTHS) -> Probed:
    """Classify images by a logistic regression on standardised representations.

    One in five training images of each class is held out to choose C, the smallest of the most accurate ones. The
    regression is then fitted to all training images. Mean and deviation are always those of the images that it is
    fitted to.

    Args:
        test: representations float[M, D].
        train: representations float[N, D].
        labels: class indices of the training images, int64[N]; at least two classes.
        strengths: values of scikit-learn's C to choose from, ascending.

    Raises:
        UserError: a class has a single training image.
    """
    features, classes = train.double().numpy(), labels.numpy()
    held_out = hold_out(labels).numpy()
    accuracies = [
        _fitted(features[~held_out], classes[~held_out], strength).score(features[held_out], classes[held_out])
        for strength in strengths
    ]
    best = strengths[int(np.argmax(accuracies))]
    guesses = _fitted(features, classes, best).predict(test.double().numpy())
    return Probed(torch.from_numpy(guesses), best)


def hold_out(labels: Tensor, seed: int = 0) -> Tensor:
    """Draw one in five images of each class, and at least one: int64[N] class indices -> bool[N]."""
    generator = torch.Generator().manual_seed(seed)
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        if len(members) == 1:
            raise UserError(
                "A linear probe needs at least two training images of each class, one of them to choose its "
                "regularisation, but a class has one. Give more training images."
            )
        drawn = torch.randperm(len(members), generator=generator)[: max(1, len(members) // HELD_OUT)]
        held_out[members[drawn]] = True
    return held_out


def _fitted(features: NDArray[np.float64], classes: NDArray[np.int64], strength: float) -> Pipeline:
    """Fit a logistic regression with the regularisation C = `strength`."""
    return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000)).fit(features, classes)
