"""Plays a source into a stream, in a thread of its own, while questions are asked."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from threading import Event
from time import monotonic
from typing import Any, Self

from sparse_vlm.videos.files import Frame
from sparse_vlm.vlm.videos.stream import VideoStream


class Feed:
    """Adds frames to a stream, inside its `with` block, until they end or the block is left.

    Args:
        stream: receives the frames.
        frames: in the order of their times.
        own_rate: add each frame when its time has come, counted from the first one. A frame that is late by more than
            the time between two frames is left out, so that a slow model keeps up. False: add all frames as fast as
            possible, or as a camera gives them.

    Attributes:
        skipped: number of frames that were left out.
    """

    def __init__(self, stream: VideoStream, frames: Iterator[Frame], own_rate: bool = True) -> None:
        self.stream, self.own_rate, self.skipped = stream, own_rate, 0
        self._frames = frames
        self._begun, self._closed = Event(), Event()
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
        begin = before = 0.0
        for number, frame in enumerate(self._frames):
            if number and self.own_rate:
                ahead = begin + frame.time - monotonic()
                if -ahead > frame.time - before:
                    self.skipped, before = self.skipped + 1, frame.time
                    continue
                self._closed.wait(max(0.0, ahead))
            if self._closed.is_set():
                return
            self.stream.add(frame.image, frame.time)
            self._begun.set()
            before = frame.time
            if number == 0:  # it may take long, since much is prepared for the first time
                begin = monotonic() - frame.time
