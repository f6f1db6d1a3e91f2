"""The videos that conversations name: which frames a sample shows, and their images."""

import hashlib
import os
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Protocol

from PIL import Image

from sparse_vlm.data.conversations.images import Images, SampleImage, file_stamp
from sparse_vlm.data.conversations.samples import Sample, Shown
from sparse_vlm.errors import UserError, error_context
from sparse_vlm.image_files import open_image, readable_suffixes
from sparse_vlm.videos.files import VideoFile
from sparse_vlm.videos.sampling import FrameSampling
from sparse_vlm.vlm.language.control_tokens import IMAGE_TOKEN
from sparse_vlm.vlm.views import frames_as_text


@dataclass(frozen=True)
class VideoSettings:
    """How the videos of conversations are shown.

    Attributes:
        sampling: which frames.
        timestamps: write the time of each frame before it.
        refusal: why samples with videos are bad; None: they are not.
    """

    sampling: FrameSampling = field(default_factory=FrameSampling)
    timestamps: bool = False
    refusal: str | None = None

    def shown(self, images: Images, sample: Sample) -> Sample:
        """Return a sample with the frames that it shows. Its video files are read without decoding.

        Raises:
            UserError: a file cannot be read, or samples with videos are refused. Names the sample.
        """
        if not sample.videos:
            return sample
        if self.refusal is not None:
            raise UserError(f"{sample} has a video, {self.refusal}.")
        with error_context(str(sample)):
            return replace(sample, shown=tuple(self._shown(images.video(name)) for name in sample.videos))

    def _shown(self, path: Path) -> Shown:
        if path.is_dir():
            files = _frame_files(path)
            if self.timestamps:
                raise UserError(f"The frames in the folder {path} have no times: leave out --timestamps.")
            sampling = FrameSampling(None, self.sampling.max_frames)  # their rate is unknown
            places = sampling.choose([float(place) for place in range(len(files))], float(len(files)))
            return Shown(tuple(places), frames_as_text(IMAGE_TOKEN, len(places)))
        video = _video(path, file_stamp(path))
        places = self.sampling.choose(video.times, video.duration)
        times = [video.times[place] for place in places] if self.timestamps else None
        return Shown(tuple(places), frames_as_text(IMAGE_TOKEN, len(places), times))


class VisualFile(Protocol):
    """A file that a sample names, an image or a video, with the images that the sample shows of it."""

    @property
    def sample(self) -> Sample:
        """The sample, which errors name."""

    @property
    def key(self) -> Hashable:
        """Names the file and the images among those of its source."""

    @property
    def size(self) -> int:
        """The number of images."""

    def contents(self) -> list[bytes]:
        """Return for each image bytes that determine it."""

    def opened(self) -> list[Image.Image]:
        """Return the images as RGB."""

    def decoded(self, contents: Sequence[bytes]) -> list[Image.Image]:
        """Return the images as RGB, given what `contents` returned."""


class SampleVideo(NamedTuple):
    """The frames that a sample shows of a video. Errors name the sample."""

    sample: Sample
    images: Images
    name: str
    places: tuple[int, ...]

    @property
    def key(self) -> tuple[str, tuple[int, ...]]:
        """Names the video and its frames."""
        return self.name, self.places

    @property
    def size(self) -> int:
        """The number of frames."""
        return len(self.places)

    def contents(self) -> list[bytes]:
        """Return for each frame bytes that determine it."""
        with error_context(str(self.sample)):
            path = self.images.video(self.name)
            if path.is_dir():
                files = _frame_files(path)
                return [files[place].read_bytes() for place in self.places]
            digest = _digest(path, file_stamp(path))
        return [f"{digest} frame {place}".encode() for place in self.places]

    def opened(self) -> list[Image.Image]:
        """Return the frames as RGB."""
        with error_context(str(self.sample)):
            path = self.images.video(self.name)
            if path.is_dir():
                files = _frame_files(path)
                return [open_image(files[place]) for place in self.places]
            return [frame.image for frame in _video(path, file_stamp(path)).frames(self.places)]

    def decoded(self, contents: Sequence[bytes]) -> list[Image.Image]:
        """Return the frames as RGB. They are read again, since `contents` of a video file only identify them."""
        return self.opened()


def files_of(images: Images, sample: Sample, used: int | None = None) -> list[VisualFile]:
    """Return the files of a sample whose frames are known, images first.

    Args:
        images: of its source.
        sample: see `VideoSettings.shown`.
        used: number of images and frames to keep, in this order; None: all.
    """
    files: list[VisualFile] = [SampleImage(sample, images, name) for name in sample.images[:used]]
    left = None if used is None else used - len(files)
    for name, shown in zip(sample.videos, sample.shown, strict=True):
        places = shown.places[:left]
        files += [SampleVideo(sample, images, name, places)] if places else []
        left = None if left is None else left - len(places)
    return files


def _frame_files(folder: Path) -> Sequence[Path]:
    """Return the image files of a folder, which are the frames of a video in the order of their names."""
    suffixes = readable_suffixes()
    names = [name for name in sorted(os.listdir(folder)) if name[0] != "." and Path(name).suffix.lower() in suffixes]
    if not names:
        raise UserError(f"The folder {folder} of a video's frames has no images. Check --video_folder.")
    return [folder / name for name in names]


@lru_cache(maxsize=64)
def _video(path: Path, stamp: str) -> VideoFile:
    """Open a video file, whose times are then read once for the length of a row and for its frames."""
    return VideoFile(path)


@lru_cache(maxsize=4096)
def _digest(path: Path, stamp: str) -> str:
    """Return the SHA-256 of a file; `stamp` makes a changed file another one."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
