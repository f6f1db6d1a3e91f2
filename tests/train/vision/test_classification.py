"""AUROC and top-1 accuracy against their definitions."""

import numpy as np
import pytest
from transformers import EvalPrediction

from train.vision.classification import auroc, auroc_metric, top_1


def by_definition(scores: np.ndarray, labels: np.ndarray) -> float:
    pairs = [(s > t) + 0.5 * (s == t) for s in scores[labels == 1] for t in scores[labels == 0]]
    return float(np.mean(pairs))


@pytest.mark.parametrize("seed", range(5))
def test_auroc_is_the_share_of_pairs_in_order(seed: int) -> None:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, 40)
    labels[:2] = 0, 1
    for scores in (generator.normal(size=40), generator.integers(0, 4, 40).astype(np.float32)):  # without, with ties
        assert auroc(scores, labels) == pytest.approx(by_definition(scores, labels), abs=1e-12)


def test_auroc_at_its_extremes() -> None:
    scores = np.array([0.1, 0.2, 0.3, 0.4])
    assert auroc(scores, np.array([0, 0, 1, 1])) == 1
    assert auroc(scores, np.array([1, 1, 0, 0])) == 0
    assert auroc(np.zeros(4), np.array([0, 1, 0, 1])) == 0.5
    assert auroc(scores, np.ones(4)) is None
    assert auroc(scores, np.zeros(4)) is None


def test_metrics_per_class(caplog: pytest.LogCaptureFixture) -> None:
    logits = np.array([[1.0, 3.0, 0.0], [0.0, 2.0, 1.0], [2.0, 1.0, 5.0]])
    labels = np.array([[0, 1, 1], [0, 0, 1], [1, 1, 1]])
    measured = auroc_metric(["a", "b", "c"])(EvalPrediction(logits, labels))
    assert measured == {
        "auroc": 0.75,
        "classes_with_auroc": 2,
        "auroc_a": 1.0,
        "auroc_b": 0.5,
        "auroc_c": None,
    }
    assert caplog.messages == ["No AUROC for 1 of 3 classes, because all measured images have the same label: c"]
    assert top_1(EvalPrediction(logits, np.array([1, 0, 2]))) == {"top1": pytest.approx(2 / 3)}
