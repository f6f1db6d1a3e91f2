"""A visitor's stream: frames enter it and are drawn with their RoIs."""

import time
from dataclasses import dataclass

from PIL import Image

from demo.attention import seen_pixels
from demo.models import OpenModel
from sparse_vlm.draw import draw_sampling_steps
from sparse_vlm.encoder.runtime.sampling_steps import recorded_sampling_steps
from sparse_vlm.errors import UserError
from sparse_vlm.vlm.modeling import SparseVLMForConditionalGeneration
from sparse_vlm.vlm.videos.processor import VideoOptions
from sparse_vlm.vlm.videos.stream import VideoStream
from sparse_vlm.vlm.vision import SparseFormerVisionModel


@dataclass
class Watching:
    """What a visitor watches.

    Attributes:
        stream: the frames; None before the first one.
        number: of the stream: another clip, Stop and a new webcam end the one before.
        live: the frames come from a webcam.
        begin: `time.monotonic()` when the stream began.
    """

    stream: VideoStream | None = None
    number: int = 0
    live: bool = False
    begin: float = 0.0

    def start(self, opened: OpenModel, options: VideoOptions, live: bool = False) -> int:
        """Begin an empty stream in place of the last one; returns its number.

        Raises:
            UserError: see `VideoStream`.
        """
        self.stream = VideoStream(opened.model, opened.processor, options)
        self.number, self.live, self.begin = self.number + 1, live, time.monotonic()
        return self.number

    def stop(self) -> None:
        """End the stream; the model still answers about its last frames."""
        self.number += 1

    def add(self, opened: OpenModel, image: Image.Image, seconds: float | None = None) -> Image.Image:
        """Add a frame to the stream and draw the RoIs of its last sampling step on what the model sees of it.

        Args:
            opened: the model; it is locked meanwhile.
            image: the frame.
            seconds: its time; None: now.
        """
        stream = self.stream
        if stream is None:
            raise UserError("Nothing plays: choose a clip, or start the webcam.")
        frame = opened.processor.video_processor.read([image], do_sample_frames=False)
        with opened.lock, recorded_sampling_steps(opened.model.model.vision_tower.encoder) as steps:
            stream.add(frame, time.monotonic() - self.begin if seconds is None else seconds)
        tokens = range(steps[-1].rois.shape[1])
        return draw_sampling_steps(
            seen_pixels(opened, frame.pixel_values)[0].numpy(), steps[-1:], 0, tokens, "token", False
        )

    def describe(self) -> str:
        """Write what the model sees now."""
        stream = self.stream
        if stream is None or stream.time is None:
            return ""
        return f"{stream.time:.1f} s: the model sees the last {stream.frames} frames of {stream.frame_tokens} tokens."


def refusal(opened: OpenModel) -> str:
    """Why a model cannot watch, as a sentence; empty if it can."""
    model = opened.model
    if not isinstance(model, SparseVLMForConditionalGeneration):
        return "A model of transformers itself cannot watch a video here."
    if not isinstance(model.model.vision_tower, SparseFormerVisionModel):
        return "A model whose vision tower is not a SparseFormer has no RoIs that could move."
    try:
        VideoStream(model, opened.processor)
    except UserError as error:
        return str(error)
    return ""
