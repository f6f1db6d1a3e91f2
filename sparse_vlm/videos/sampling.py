"""Which frames of a video are shown: some per second, and no more than a maximum."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real

from sparse_vlm.errors import UserError

FPS = 2.0
MAX_FRAMES = 64


@dataclass(frozen=True)
class FrameSampling:
    """How many frames of a video are shown.

    Attributes:
        fps: frames per second; None: as many as `max_frames` allows.
        max_frames: most frames of a video; a longer video is shown at fewer frames per second. None: no limit.

    Raises:
        UserError: a value is not positive.
    """

    fps: float | None = FPS
    max_frames: int | None = MAX_FRAMES

    def __post_init__(self) -> None:
        # requests to servers and configuration files hold any values
        if self.fps is not None and not (_is_number(self.fps) and 0 < self.fps < math.inf):
            raise UserError(f"fps must be a number above 0, got {self.fps!r}.")
        frames = self.max_frames
        if frames is not None and not (_is_number(frames) and 1 <= frames < math.inf and frames == int(frames)):
            raise UserError(f"max_frames must be a whole number, at least 1, got {frames!r}.")

    def choose(self, times: Sequence[float], end: float) -> list[int]:
        """Return the indices of the frames to show, in order and none twice.

        Times at equal distances begin with the first frame's. Each chooses the frame that is on the screen then, so a
        variable frame rate makes no difference.

        Args:
            times: the time of each frame in seconds, in ascending order.
            end: when the last frame leaves the screen.
        """
        step = 0.0 if self.fps is None else 1 / self.fps
        length = end - times[0]
        if self.max_frames is not None and (self.fps is not None or len(times) > self.max_frames):
            step = max(step, length / self.max_frames)
        if step == 0:
            return list(range(len(times)))
        slack = 1e-6 * step  # rounding of times must neither add a frame nor choose the one before
        count = max(1, math.ceil((length - slack) / step))
        shown = [max(0, bisect_right(times, times[0] + index * step + slack) - 1) for index in range(count)]
        return list(dict.fromkeys(shown))


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
