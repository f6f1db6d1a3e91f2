"""Plays a source into a stream, in a thread of its own, while questions are asked."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from threading import Event
from typing import Any, Self

from sparse_vlm.videos.files import Frame
from sparse_vlm.videos.live import OwnRate
from sparse_vlm.vlm.videos.stream import VideoStream


class Feed:
    """Adds frames to a stream, inside its `with` block, until they end or the block is left.

    Args:
        stream: receives the frames.
        frames: in the order of their times.
        own_rate: add them as `OwnRate` gives them; False: as fast as possible, or as a camera gives them.
    """

    def __init__(self, stream: VideoStream, frames: Iterator[Frame], own_rate: bool = True) -> None:
        self.stream = stream
        self._begun, self._closed = Event(), Event()
        self._frames = OwnRate(frames, self._closed.wait) if own_rate else frames
        self._resources = ExitStack()
        self._future: Future | None = None

    def __enter__(self) -> Self:
        pool = self._resources.enter_context(ThreadPoolExecutor(max_workers=1))
        self._resources.callback(self._closed.set)  # before the pool waits for its thread
        self._future = pool.submit(self._play)
        self._future.add_done_callback(lambda _: self._begun.set())
        return self

    def __exit__(self, *error: Any) -> None:
        self._resources.close()

    @property
    def skipped(self) -> int:
        """Number of frames that were left out."""
        return self._frames.skipped if isinstance(self._frames, OwnRate) else 0

    @property
    def ended(self) -> bool:
        """Whether no more frames will come."""
        return self._future is None or self._future.done()

    def wait_for_first(self) -> None:
        """Wait until the first frame has entered the stream, then `check`."""
        self._begun.wait()
        self.check()

    def wait_for_last(self) -> None:
        """Wait until all frames have entered the stream, then `check`."""
        if self._future is not None:
            wait([self._future])
        self.check()

    def check(self) -> None:
        """Raise the error that ended the frames, the first time: the stream still answers about those before."""
        if self._future is not None and self._future.done():
            future, self._future = self._future, None
            future.result()

    def _play(self) -> None:
        for frame in self._frames:
            if self._closed.is_set():
                return
            self.stream.add(frame.image, frame.time)
            self._begun.set()
