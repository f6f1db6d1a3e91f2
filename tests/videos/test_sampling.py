"""Which frames are shown."""

from typing import Any

import pytest

from sparse_vlm.errors import UserError
from sparse_vlm.videos.sampling import FrameSampling

TEN_PER_SECOND = [index / 10 for index in range(40)]


@pytest.mark.parametrize(
    ("sampling", "chosen"),
    [
        (FrameSampling(2, 64), [0, 5, 10, 15, 20, 25, 30, 35]),
        (FrameSampling(2, 4), [0, 10, 20, 30]),  # the whole video at fewer frames per second
        (FrameSampling(2, 3), [0, 13, 26]),
        (FrameSampling(2, 1), [0]),
        (FrameSampling(0.5, 64), [0, 20]),
        (FrameSampling(0.01, 64), [0]),
        (FrameSampling(10, None), list(range(40))),
        (FrameSampling(30, None), list(range(40))),  # no frame twice
        (FrameSampling(None, None), list(range(40))),
        (FrameSampling(None, 40), list(range(40))),
        (FrameSampling(None, 4), [0, 10, 20, 30]),
    ],
)
def test_a_steady_rate(sampling: FrameSampling, chosen: list[int]) -> None:
    assert sampling.choose(TEN_PER_SECOND, 4.0) == chosen


@pytest.mark.parametrize("rate", [23.976, 24, 25, 29.97, 30, 50, 59.94, 60, 240])
def test_one_frame_per_second_of_any_rate(rate: float) -> None:
    times = [index / rate for index in range(int(20 * rate))]
    chosen = FrameSampling(1, 64).choose(times, len(times) / rate)
    assert len(chosen) == 20
    assert all(0 <= second - times[index] < 1 / rate for second, index in enumerate(chosen))


def test_a_variable_rate_is_sampled_by_time() -> None:
    times = [0, 0.1, 0.2, 0.3, 3, 3.1, 8]
    assert FrameSampling(1, 64).choose(times, 9.0) == [0, 3, 4, 5, 6]
    assert FrameSampling(None, 3).choose(times, 9.0) == [0, 4, 5]


def test_times_that_do_not_begin_at_zero() -> None:
    assert FrameSampling(2, 64).choose([time + 5 for time in TEN_PER_SECOND], 9.0) == [0, 5, 10, 15, 20, 25, 30, 35]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0, 64), "fps must be a number above 0, got 0"),
        ((-2, 64), "got -2"),
        ((float("nan"), 64), "got nan"),
        ((float("inf"), 64), "got inf"),
        ((2, 0), "max_frames must be a whole number, at least 1, got 0"),
        ((2, 1.5), "got 1.5"),
        (("2", 64), "fps must be a number above 0, got '2'"),
        ((True, 64), "got True"),
        ((2, "9"), "max_frames must be a whole number, at least 1, got '9'"),
        ((2, float("nan")), "got nan"),
        ((2, float("inf")), "got inf"),
    ],
)
def test_bad_numbers(values: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        FrameSampling(*values)
