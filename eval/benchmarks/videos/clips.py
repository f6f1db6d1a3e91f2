"""Videos of benchmarks: files, parts of files, and folders of frames → clips."""

from pathlib import Path
from typing import Any

from eval.scoring.protocol import Video
from sparse_vlm.errors import UserError
from sparse_vlm.image_files import open_image, readable_suffixes
from sparse_vlm.videos.files import VideoFile
from sparse_vlm.vlm.videos.answering import VideoAnswerer
from sparse_vlm.vlm.videos.clips import Clip

FRAMES_PER_SECOND = 3  # of MVBench's folders of frames


def read_clip(video: Video, answerer: VideoAnswerer) -> Clip:
    """Read the frames of a video that the model sees.

    Raises:
        UserError: the video cannot be read, or has no frames.
    """
    if not video.path.is_dir():
        return answerer.read(VideoFile(video.path, part=video.part))
    metadata: Any = {"fps": FRAMES_PER_SECOND}
    return answerer.read([open_image(path) for path in _frames(video)], video_metadata=metadata)


def count_frames(video: Video, answerer: VideoAnswerer) -> int:
    """Return the number of frames that the model sees, without decoding them."""
    sampling = answerer.sampling
    if video.path.is_dir():
        count = len(_frames(video))
        times = [place / FRAMES_PER_SECOND for place in range(count)]
        return len(sampling.choose(times, count / FRAMES_PER_SECOND))
    file = VideoFile(video.path, part=video.part)
    return len(sampling.choose(file.times, file.duration))


def _frames(video: Video) -> list[Path]:
    """Return the image files of a folder, or those in its part."""
    paths = sorted(path for path in video.path.iterdir() if path.suffix.lower() in readable_suffixes())
    if not paths:
        raise UserError(f"The folder {video.path} has no images: it cannot be a video. Replace it.")
    if video.part is None:
        return paths
    start, end = (round(second * FRAMES_PER_SECOND) for second in video.part)
    shown = paths[start : max(end, start + 1)]
    if not shown:
        seconds = len(paths) / FRAMES_PER_SECOND
        raise UserError(
            f"The video {video.path} has no frame from {video.part[0]:g} to {video.part[1]:g} s: it lasts "
            f"{seconds:.1f} s."
        )
    return shown
