"""Frames of a source in the order of their times: a video file, or a camera of Linux, read by PyAV."""

import stat
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from sparse_vlm.errors import UserError, one_line
from sparse_vlm.videos.files import Frame, VideoFile, pyav
from sparse_vlm.videos.frames import to_image
from sparse_vlm.videos.sampling import FPS, FrameSampling

DEVICES = Path("/dev")


class OwnRate:
    """Frames, each when its time has come, counted from the first one.

    A frame that is late by more than the time between two frames is left out, so that a slow reader keeps up.

    Args:
        frames: in the order of their times.
        wait: sleeps for a number of seconds, or less; after that the frame is due.

    Attributes:
        skipped: number of frames that were left out.
    """

    def __init__(self, frames: Iterable[Frame], wait: Callable[[float], object] = time.sleep) -> None:
        self._frames, self._wait, self.skipped = frames, wait, 0

    def __iter__(self) -> Iterator[Frame]:
        begin = before = 0.0
        for number, frame in enumerate(self._frames):
            if number == 0:
                yield frame
                begin = time.monotonic() - frame.time  # the first frame may take long: much is prepared for it
            elif (late := time.monotonic() - begin - frame.time) > frame.time - before:
                self.skipped += 1
            else:
                self._wait(max(0.0, -late))
                yield frame
            before = frame.time


def is_camera(source: str | Path) -> bool:
    """Return whether a path is a device rather than a file.

    Raises:
        UserError: it looks like one, but does not exist.
    """
    path = Path(source)
    if path.parent == DEVICES and not path.exists():
        raise UserError(f"There is no camera {path}: connect one, or give a video file.")
    return path.exists() and stat.S_ISCHR(path.stat().st_mode)


def file_frames(source: str | Path, fps: float = FPS) -> Iterator[Frame]:
    """Open a video file and return an iterator of its frames at `fps` frames per second, from the first to the last.

    Raises:
        UserError: the file cannot be read; see `VideoFile`. The iterator raises it if the file is damaged.
    """
    sampling = FrameSampling(fps, None)
    file = VideoFile(source)
    return file.frames(sampling.choose(file.times, file.duration))


def camera_frames(device: str | Path, fps: float = FPS) -> Iterator[Frame]:
    """Open a camera by Video4Linux and return an iterator of its frames, at most `fps` per second.

    A frame is decoded when the iterator is advanced. Frames that the camera took in between are dropped, apart from the
    few in its buffer. Their times count from the first frame. Closing the iterator closes the camera.

    Raises:
        UserError: the device is not a camera, or is not readable. The iterator raises it if the camera is disconnected.
    """
    FrameSampling(fps, None)
    av = pyav()
    try:
        container = av.open(str(device), format="v4l2")
    except av.error.FFmpegError as error:
        raise UserError(f"{device} cannot be read as a camera: {one_line(error)}.") from error
    return _read(av, container, fps, str(device))


def _read(av: Any, container: Any, fps: float, name: str) -> Iterator[Frame]:
    start: float | None = None
    due = 0.0
    try:
        with container:
            for decoded in container.decode(video=0):
                if decoded.time is None:
                    continue
                if start is None:
                    start = due = decoded.time
                if decoded.time < due - 0.05 / fps:  # a camera's times are not exact
                    continue
                yield Frame(to_image(decoded, 1.0), decoded.time - start)
                due = max(due + 1 / fps, decoded.time)
    except av.error.FFmpegError as error:
        raise UserError(f"The camera {name} stopped: {one_line(error)}.") from error
