"""Videos as users give them → clips: the frames that a model sees, preprocessed, with their times."""

import base64
import io
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice, pairwise
from numbers import Integral
from pathlib import Path
from typing import Any, BinaryIO

import httpx
import torch
from PIL import Image
from torch import Tensor
from transformers.video_utils import VideoMetadata

from sparse_vlm.errors import UserError, error_context, one_line, short
from sparse_vlm.videos.files import Frame, VideoFile
from sparse_vlm.videos.sampling import FrameSampling

AT_ONCE = 8  # decoded frames in memory


@dataclass
class ClipMetadata(VideoMetadata):
    """transformers' metadata of a video, with the time of each shown frame.

    Attributes:
        times: seconds after the first frame of the video; None if unknown. A variable frame rate makes them differ from
            transformers' `frames_indices / fps`.
    """

    times: list[float] | None = None

    @property
    def timestamps(self) -> list[float]:
        """The times.

        Raises:
            UserError: they are unknown.
        """
        if self.times is None:
            raise UserError(
                'The times of frames that are given as images are unknown: give video_metadata={"fps": …}, or the '
                "video file."
            )
        return self.times


@dataclass
class Clip:
    """The shown frames of one video. The processor takes it wherever it takes a video, and does not sample it again.

    Attributes:
        pixel_values: float32[F, 3, H, W].
        metadata: of the video and its F frames.
    """

    pixel_values: Tensor
    metadata: ClipMetadata

    def __len__(self) -> int:
        return len(self.pixel_values)


class ImageFiles(tuple):
    """Image files that are the frames of one video."""


def read_clip(
    video: Any,
    sampling: FrameSampling,
    prepare: Callable[[Sequence[Any]], Tensor],
    metadata: VideoMetadata | None = None,
) -> Clip:
    """Read one video.

    Args:
        video: a file, an http(s) address, a data: URL, bytes, an open binary file or a VideoFile; frames, as a list of
            images or an array of four dimensions; or a Clip, which is returned.
        sampling: which frames are shown. Frames without a known rate are all shown, up to its maximum.
        prepare: B images of any kind -> float32[B, 3, H, W].
        metadata: of frames: their rate (`fps`), and their places in a longer video (`frames_indices`).

    Raises:
        UserError: the video cannot be read, or has no frames.
    """
    if isinstance(video, Clip):
        return video
    if isinstance(video, VideoFile):
        return _clip_of_file(video, sampling, prepare)
    if is_source(video):
        with _local(video) as (source, name):
            return _clip_of_file(VideoFile(source, name), sampling, prepare)
    return _clip_of_frames(list(video), sampling, prepare, metadata)


def is_source(video: Any) -> bool:
    """Return whether a value names or holds a video file, rather than frames."""
    return isinstance(video, str | Path | bytes | VideoFile | Clip) or hasattr(video, "read")


def is_video(value: Any) -> bool:
    """Return whether a value is one video."""
    return is_source(value) or isinstance(value, ImageFiles) or getattr(value, "ndim", 0) == 4 or is_frames(value)


def is_frames(value: Any) -> bool:
    """Return whether a value is a list of frames."""
    frames = isinstance(value, list | tuple) and bool(value)
    return frames and all(isinstance(one, Image.Image) or getattr(one, "ndim", 0) in (2, 3) for one in value)


def flat_videos(videos: Any) -> list[Any]:
    """Flatten nested lists of videos and [N, F, …] arrays, in order. A list of images is one video.

    A list of paths is several videos, but a list of paths inside two lists is one video of image files, as in
    transformers.

    Raises:
        UserError: a value is not a video.
    """
    if is_video(videos):
        return [videos]
    if getattr(videos, "ndim", 0) == 5:
        return list(videos)
    if not isinstance(videos, list | tuple):
        raise UserError(
            f"A video must be a file, an address, a list of images or an array of frames, not {type(videos).__name__}."
        )
    flat: list[Any] = []
    for one in videos:
        if isinstance(one, list | tuple) and one and all(_is_image_files(part) for part in one):
            flat += map(ImageFiles, one)
        else:
            flat += flat_videos(one)
    return flat


def _is_image_files(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(one, str | Path) for one in value)


def _clip_of_file(video: VideoFile, sampling: FrameSampling, prepare: Callable[[Sequence[Any]], Tensor]) -> Clip:
    indices = sampling.choose(video.times, video.duration)
    size = (0, 0)

    def images(frames: Sequence[Frame]) -> list[Image.Image]:
        nonlocal size
        size = frames[0].image.size
        return [frame.image for frame in frames]

    pixels = torch.cat([prepare(images(some)) for some in _batches(video.frames(indices))])
    metadata = ClipMetadata(
        len(video), video.rate, *size, video.duration, "pyav", indices, [video.times[index] for index in indices]
    )
    return Clip(pixels, metadata)


def _clip_of_frames(
    frames: list[Any],
    sampling: FrameSampling,
    prepare: Callable[[Sequence[Any]], Tensor],
    metadata: VideoMetadata | None,
) -> Clip:
    if not frames:
        raise UserError("The video has no frames. Leave it out.")
    rate = None if metadata is None else metadata.fps
    with error_context("video_metadata"):
        FrameSampling(rate)
        places = _places(metadata, len(frames))
    if rate is None:  # one second each, which does not matter for a maximum alone
        sampling, times = FrameSampling(None, sampling.max_frames), [float(place) for place in range(len(frames))]
    else:
        times = [(place - places[0]) / rate for place in places]
    indices = sampling.choose(times, times[-1] + 1 / (rate or 1))
    pixels = torch.cat([prepare(some) for some in _batches(frames[index] for index in indices)])
    shown = ClipMetadata(
        total_num_frames=len(frames),
        fps=rate,
        duration=None if rate is None else len(frames) / rate,
        frames_indices=[places[index] for index in indices],
        times=None if rate is None else [times[index] for index in indices],
    )
    return Clip(pixels, shown)


def _places(metadata: VideoMetadata | None, frames: int) -> list[int]:
    """Return the places of frames in a longer video."""
    if metadata is None or metadata.frames_indices is None:
        return list(range(frames))
    given: Any = metadata.frames_indices
    given = given.tolist() if hasattr(given, "tolist") else list(given)
    if len(given) != frames:
        raise UserError(f"The video has {frames} frames, but there are {len(given)} frames_indices.")
    if not all(isinstance(place, Integral) for place in given) or any(one > other for one, other in pairwise(given)):
        raise UserError(f"frames_indices must be whole numbers in ascending order, got {short(given)}.")
    return [int(place) for place in given]


def _batches(frames: Iterable[Any]) -> Iterator[list[Any]]:
    """Yield frames in lists of AT_ONCE."""
    remaining = iter(frames)
    while some := list(islice(remaining, AT_ONCE)):
        yield some


@contextmanager
def _local(video: Any) -> Iterator[tuple[str | Path | BinaryIO, str]]:
    """Yield a video file on this machine, or in memory, and its name for errors."""
    if isinstance(video, bytes):
        yield io.BytesIO(video), f"of {len(video)} bytes"
    elif not isinstance(video, str | Path):
        yield video, str(getattr(video, "name", "of an open file"))
    elif str(video).startswith(("http://", "https://")):
        with tempfile.TemporaryFile() as file:
            _download(str(video), file)
            yield file, _short(str(video))
    elif isinstance(video, str) and video.startswith("data:") and not os.path.exists(video):
        yield io.BytesIO(_decode(video)), _short(video)
    else:
        yield video, str(video)


def _download(address: str, file: BinaryIO) -> None:
    try:
        with httpx.stream("GET", address, follow_redirects=True) as response:
            for piece in response.raise_for_status().iter_bytes():
                file.write(piece)
    except (OSError, httpx.HTTPError, httpx.InvalidURL) as error:
        raise UserError(f"The video {_short(address)} cannot be fetched ({one_line(error)}).") from error


def _decode(url: str) -> bytes:
    try:
        return base64.b64decode(url.partition(",")[2], validate=True)
    except ValueError:
        raise UserError(f"The video {_short(url)} is not a data: URL in base64.") from None


def _short(source: str) -> str:
    return source if len(source) < 100 else f"{source[:97]}…"
