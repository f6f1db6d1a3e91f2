"""RoI statistics for layouts with known values."""

import pytest
import torch

from sparse_vlm.bootstrap.roi_statistics import RoIStatistics, roi_numbers, roi_statistics
from sparse_vlm.encoder.rois import lay_out_rois


def test_tiles_that_cover_the_image_once() -> None:
    numbers = roi_numbers(lay_out_rois(64).expand(2, -1, -1))
    assert numbers.shape == (2, 3)
    statistics = roi_statistics(numbers)
    # 8 × 8 centres: the variance of a coordinate is (1 − 1/64)/12
    assert statistics.size == pytest.approx(1 / 8)
    assert statistics.spread == pytest.approx((2 * (1 - 1 / 64) / 12) ** 0.5)
    assert statistics.outside == pytest.approx(0, abs=1e-6)
    assert statistics.collapse() is None


def test_area_outside_the_image_and_signed_sizes() -> None:
    """One RoI half outside, one completely outside, one inside and mirrored, one without area."""
    rois = torch.tensor([[[0.5, 0.0, 1.5, 1.0], [2.0, 2.0, 3.0, 4.0], [0.6, 0.2, 0.2, 0.4], [0.5, 0.5, 0.5, 0.9]]])
    size, _, outside = roi_numbers(rois)[0].tolist()
    assert outside == pytest.approx((0.5 + 1 + 0 + 0) / 4)
    assert size == pytest.approx((1 + 2**0.5 + 0.08**0.5 + 0) / 4)


@pytest.mark.parametrize(
    ("statistics", "sentence"),
    [
        (RoIStatistics(0.2, 0.04, 0.0), "all tokens sample one place"),
        (RoIStatistics(0.01, 0.4, 0.0), "mean size of the RoIs is 0.010"),
        (RoIStatistics(2.5, 0.4, 0.1), "mean size of the RoIs is 2.500"),
        (RoIStatistics(0.2, 0.4, 0.6), "60% of the RoIs' area is outside"),
    ],
)
def test_collapse_is_named(statistics: RoIStatistics, sentence: str) -> None:
    assert sentence in str(statistics.collapse())
