"""The choice of each side's learning rate on the validation questions."""

from typing import Any

from sparse_vlm.files import read_object
from train.studies.photographs.paths import Paths
from train.studies.photographs.settings import Settings
from train.studies.photographs.steps import SIDES, token_counts


def choose(settings: Settings, paths: Paths) -> dict[str, Any]:
    """Choose the learning rate with the highest validation accuracy; among equal ones, the lowest.

    Returns:
        side -> {"learning_rate", "validation": {rate: accuracy}}. The accuracy of a side with several numbers of visual
        tokens is their mean.
    """
    choice = {}
    for side in SIDES:
        accuracies = {rate: _accuracy(settings, paths, side, rate) for rate in sorted(settings.learning_rates)}
        best = max(accuracies, key=lambda rate: accuracies[rate])
        choice[side] = {"learning_rate": best, "validation": {f"{rate:g}": value for rate, value in accuracies.items()}}
    return choice


def _accuracy(settings: Settings, paths: Paths, side: str, rate: float) -> float:
    files = [paths.scores(side, rate, "validation", count) for count in token_counts(settings, side)]
    accuracies = [read_object(file)["scores"]["accuracy"] for file in files]
    return sum(accuracies) / len(accuracies)
