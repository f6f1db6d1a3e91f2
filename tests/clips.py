"""Video files made on the spot by PyAV: frames whose grey value tells their number."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

STEP = 8  # grey value between two frames
TICKS = 1000  # per second, for frames with times of their own


def grey_frames(count: int, width: int = 64, height: int = 48) -> list[np.ndarray]:
    """Frames uint8[H, W, 3] of the grey values 8, 16, 24, …"""
    return [np.full((height, width, 3), STEP * (index + 1), np.uint8) for index in range(count)]


def corner_frame(width: int = 64, height: int = 48) -> np.ndarray:
    """A grey frame, uint8[H, W, 3], with a red quarter in its upper left corner and a blue one in its lower left."""
    frame = np.full((height, width, 3), 128, np.uint8)
    frame[: height // 2, : width // 2] = (255, 0, 0)
    frame[height // 2 :, : width // 2] = (0, 0, 255)
    return frame


def write_clip(
    path: Path,
    frames: Sequence[np.ndarray],
    *,
    rate: int = 10,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    times: Sequence[float] | None = None,
    sound: bool = False,
    title: str = "",
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    **settings: Any,
) -> Path:
    """Encode frames uint8[H, W, 3], and silence if `sound`.

    Args:
        path: its suffix chooses the container.
        frames: one or more frames of one size; none with `sound` for a file of sound alone.
        rate: frames per second.
        codec, pix_fmt, options: of the video.
        times: time of each frame in seconds, for a variable frame rate.
        title: a note in the file.
        sound: add silence as long as the video, or one second without frames.
        container_options: of the container, e.g. {"movflags": "faststart"}.
        settings: attributes of the video stream, e.g. sample_aspect_ratio, or `rotation` in degrees.
    """
    rotation = settings.pop("rotation", None)
    with av.open(str(path), "w", container_options=container_options or {}) as container:
        container.metadata["title"] = title
        video: Any = None
        if frames:
            video = container.add_stream(codec, rate=TICKS if times else rate, options=options or {})
            video.height, video.width = frames[0].shape[:2]
            video.pix_fmt = pix_fmt
            for name, value in settings.items():
                setattr(video.codec_context, name, value)
            if rotation is not None:
                video.set_display_rotation(rotation)
        audio: Any = container.add_stream("aac", rate=16000) if sound else None
        for index, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            if times:
                frame.pts, frame.time_base = round(times[index] * TICKS), Fraction(1, TICKS)
            container.mux(video.encode(frame))
        if video is not None:
            container.mux(video.encode(None))
        if audio is not None:
            seconds = len(frames) / rate if frames else 1.0
            silence = av.AudioFrame.from_ndarray(np.zeros((1, int(16000 * seconds)), np.float32), "fltp", "mono")
            silence.sample_rate, silence.pts = 16000, 0
            container.mux(audio.encode(silence))
            container.mux(audio.encode(None))
    return path
