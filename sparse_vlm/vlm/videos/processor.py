"""Videos → pixel values: the encoder's preprocessing of sampled frames as a video processor of transformers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoVideoProcessor, BatchFeature
from transformers.processing_utils import VideosKwargs
from transformers.video_processing_utils import VideoProcessorMixin
from transformers.video_utils import VideoMetadata

from sparse_vlm.errors import UserError
from sparse_vlm.videos.sampling import FPS, MAX_FRAMES, FrameSampling
from sparse_vlm.vlm.configuration import SparseVLMConfig
from sparse_vlm.vlm.image_processor import SparseFormerImageProcessor
from sparse_vlm.vlm.videos.clips import Clip, flat_videos, read_clip
from sparse_vlm.vlm.views import check_count
from sparse_vlm.vlm.vision import SparseFormerVisionConfig

TYPE = "video_processor_type"


@dataclass(frozen=True)
class VideoOptions:
    """How the videos of a prompt are shown; None: as the processor's settings say.

    Attributes:
        fps, max_frames: see `FrameSampling`.
        frame_tokens: number of visual tokens of each frame.
        timestamps: write the time of each frame before it, as in "0.5s: ".

    Raises:
        UserError: a number is not positive.
    """

    fps: float | None = None
    max_frames: int | None = None
    frame_tokens: int | None = None
    timestamps: bool = False

    def __post_init__(self) -> None:
        FrameSampling(self.fps, self.max_frames)
        if self.frame_tokens is not None:
            check_count(self.frame_tokens)

    @property
    def sampling(self) -> dict[str, Any]:
        """The arguments of the video processor."""
        return {"fps": self.fps, "max_frames": self.max_frames}

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments of the processor of a VLM."""
        return {**self.sampling, "frame_tokens": self.frame_tokens, "timestamps": self.timestamps}


class ClipKwargs(VideosKwargs, total=False):
    """Options of the video processor, for transformers."""

    max_frames: int | None


class SparseFormerVideoProcessor(VideoProcessorMixin):
    """Videos -> pixel_values_videos float32[F, 3, H, W] of the shown frames of all videos, and video_frames int64[N].

    Each frame becomes what `SparseFormerImageProcessor` makes of an image, bit for bit. A file is decoded frame by
    frame, so that memory does not depend on its length.

    Args:
        aspect: see `SparseFormerImageProcessor`.
        fps: frames per second that are shown.
        max_frames: most frames of a video; see `FrameSampling`.
        **settings: settings of `SparseFormerImageProcessor`.
    """

    valid_kwargs = ClipKwargs
    model_input_names = ["pixel_values_videos", "video_frames"]  # noqa: RUF012 (transformers' own convention)

    def __init__(
        self, aspect: str = "crop", fps: float = FPS, max_frames: int | None = MAX_FRAMES, **settings: Any
    ) -> None:
        for own in (TYPE, "processor_class"):  # of the file, for transformers
            settings.pop(own, None)
        FrameSampling(fps, max_frames)
        images = SparseFormerImageProcessor(aspect, **settings).to_dict()
        images.pop("image_processor_type", None)
        self._of_images = list(images)
        own_settings: dict[str, Any] = {"fps": fps, "max_frames": max_frames}
        super().__init__(**images, **own_settings)

    @classmethod
    def from_image_processor(cls, images: SparseFormerImageProcessor, **settings: Any) -> "SparseFormerVideoProcessor":
        """Create the video processor whose frames look as the images of an image processor."""
        own = images.to_dict()
        own.pop("image_processor_type", None)
        return cls(**own, **settings)

    def sampling(
        self,
        fps: float | None = None,
        max_frames: int | None = None,
        num_frames: int | None = None,
        do_sample_frames: bool | None = None,
    ) -> FrameSampling:
        """Return which frames are shown; options that are None have the processor's values.

        Args:
            fps, max_frames: see `FrameSampling`.
            num_frames: so many frames at equal distances, or all of a shorter video.
            do_sample_frames: False: every frame.

        Raises:
            UserError: a value is not positive, or the options contradict each other.
        """
        if num_frames is not None:
            if fps is not None or max_frames is not None:
                raise UserError("num_frames chooses the frames by itself: leave out fps and max_frames, or num_frames.")
            return FrameSampling(None, num_frames)
        if do_sample_frames is False:
            if fps is not None:
                raise UserError("do_sample_frames=False shows every frame: leave out fps, or do_sample_frames.")
            return FrameSampling(None, max_frames)
        default: Any = self
        return FrameSampling(
            default.fps if fps is None else fps, default.max_frames if max_frames is None else max_frames
        )

    def preprocess(
        self,
        videos: Any,
        *,
        fps: float | None = None,
        max_frames: int | None = None,
        num_frames: int | None = None,
        do_sample_frames: bool | None = None,
        video_metadata: Any = None,
        return_metadata: bool | None = False,
        return_tensors: str | None = None,
        **settings: Any,
    ) -> BatchFeature:
        """Read and preprocess videos. A video processor is called as a function, which calls this.

        Args:
            videos: a video, or several in any nesting; see `read_clip` for what a video may be.
            fps, max_frames, num_frames, do_sample_frames: see `sampling`.
            video_metadata: transformers' metadata of videos that are given as frames, e.g. {"fps": 30}; one for all, or
                a list with one for each video.
            return_metadata: return `video_metadata` as well, a ClipMetadata for each video.
            return_tensors: "pt" or "np"; None: a tensor and a list.
            settings: settings of `SparseFormerImageProcessor`, for this call.

        Raises:
            UserError: a video cannot be read, or the options do not fit.
        """
        flat = flat_videos(videos)
        if not flat:
            raise UserError("The list of videos is empty. Leave out videos if the text has none.")
        sampling = self.sampling(fps, max_frames, num_frames, do_sample_frames)
        images = SparseFormerImageProcessor(**{name: getattr(self, name) for name in self._of_images})

        def prepare(frames: Sequence[Any]) -> Tensor:
            return images(list(frames), return_tensors="pt", **settings)["pixel_values"]

        given = _metadata_of_each(video_metadata, len(flat))
        clips = [read_clip(video, sampling, prepare, one) for video, one in zip(flat, given, strict=True)]
        features: dict[str, Any] = {
            "pixel_values_videos": torch.cat([clip.pixel_values for clip in clips]),
            "video_frames": [len(clip) for clip in clips],
        }
        encoded = BatchFeature(features, tensor_type=return_tensors)
        if return_metadata:
            encoded["video_metadata"] = [clip.metadata for clip in clips]
        return encoded

    def read(self, video: Any, **options: Any) -> Clip:
        """Read one video once, for several prompts: the Clip may stand for it in every call.

        Arguments and errors are those of `preprocess`.
        """
        encoded = self.preprocess([video], return_metadata=True, **options)
        return Clip(encoded["pixel_values_videos"], encoded["video_metadata"][0])

    def to_dict(self) -> dict[str, Any]:
        """Return the settings, as transformers does."""
        return {name: value for name, value in super().to_dict().items() if not name.startswith("_")}


def _metadata_of_each(metadata: Any, videos: int) -> list[VideoMetadata | None]:
    several = list(metadata) if isinstance(metadata, list | tuple) else [metadata] * videos
    flat = [one for part in several for one in (part if isinstance(part, list | tuple) else [part])]
    if len(flat) != videos:
        raise UserError(f"There are {videos} videos but {len(flat)} video_metadata: give one for each.")
    return [_metadata(one) for one in flat]


def _metadata(one: Any) -> VideoMetadata | None:
    if one is None or isinstance(one, VideoMetadata):
        return one
    try:
        return VideoMetadata(**{"total_num_frames": 0, **one})
    except TypeError as error:
        raise UserError(
            f"The video_metadata {one!r} is not transformers' VideoMetadata, e.g. {{'fps': 30}}."
        ) from error


for config in (SparseVLMConfig, SparseFormerVisionConfig):
    AutoVideoProcessor.register(config, SparseFormerVideoProcessor, exist_ok=True)
