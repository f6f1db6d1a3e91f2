"""Video files: the time of every frame, and some of the frames, decoded one at a time by PyAV."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from PIL import Image

from sparse_vlm.errors import UserError, one_line
from sparse_vlm.videos.frames import to_image

# FFmpeg's names of the formats that may be opened. Others are not videos, since FFmpeg plays text and still images
# as well, or name further files and addresses to open, as playlists do.
FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,apng,mpegts,mpeg,mpegvideo,flv,asf,ogg,mxf,dv,nut,ivf,h264,hevc,m4v,"
    "obu,wav,mp3,flac,aac"  # sound alone, to say so
)
LOST = 0.25  # seconds by which a complete file may be shorter than its header says, beside two frames


class Frame(NamedTuple):
    """A frame of a video.

    Attributes:
        image: upright, 8-bit RGB.
        time: seconds after the first frame.
    """

    image: Image.Image
    time: float


class VideoFile:
    """A video file. Opening it reads the file once, without decoding, to learn the time of every frame.

    Memory does not depend on the length of the video, apart from 16 bytes for the time of a frame.

    Args:
        source: a path, or an open binary file that can be read and moved in.
        name: the name of the video in errors; None: the path.
        part: show only the frames that are on the screen from a start to an end, in seconds; None: the whole file.

    Attributes:
        times: time of each frame in seconds after the first, in ascending order.
        duration: when the last frame leaves the screen, in seconds after the first frame.

    Raises:
        UserError: PyAV is not installed, or the file is missing, empty, cut short, damaged, sound alone, or not a
            video, or no frame is in the part.
    """

    def __init__(
        self, source: str | Path | BinaryIO, name: str | None = None, part: tuple[float, float] | None = None
    ) -> None:
        self._source, self.name = source, name or str(source)
        with self._opened() as (container, stream):
            self._in_order = container.format.name == "avi"
            stamps, self._keys, end = self._read_stamps(container, stream)
            self._unit = float(1 / stream.average_rate if self._in_order else stream.time_base)
        self._stamps = self._shown = stamps
        self.times = [(stamp - stamps[0]) * self._unit for stamp in stamps]
        self.duration = max((end - stamps[0]) * self._unit, self.times[-1] + self._unit)
        if part is not None:
            self._cut(*part)

    def __len__(self) -> int:
        return len(self.times)

    @property
    def rate(self) -> float:
        """Frames per second, on average."""
        return len(self) / self.duration

    def frames(self, indices: Sequence[int]) -> Iterator[Frame]:
        """Decode frames, given by ascending indices into `times`, one at a time.

        Raises:
            UserError: the file is damaged.
        """
        with self._opened() as (container, stream):
            aspect = float(stream.sample_aspect_ratio or 1)
            wanted = [self._shown[index] for index in indices]
            for index, decoded in zip(indices, self._decoded(container, stream, wanted), strict=True):
                yield Frame(to_image(decoded, aspect), self.times[index])

    def _cut(self, start: float, end: float) -> None:
        """Show the frames from `start` to `end` only."""
        first, last = max(0, bisect_right(self.times, start) - 1), bisect_left(self.times, end)
        if start >= self.duration or last <= first:
            raise UserError(
                f"The video {self.name} has no frame from {start:g} to {end:g} s: it lasts {self.duration:.1f} s."
            )
        begin = self.times[first]
        self.duration = min(self.duration, end) - begin
        self.times = [time - begin for time in self.times[first:last]]
        self._shown = self._stamps[first:last]

    @contextmanager
    def _opened(self) -> Iterator[tuple[Any, Any]]:
        """Yield the container and its video stream, and turn FFmpeg's errors into sentences."""
        av = pyav()
        try:
            with _container(av, self._source) as container:
                yield container, self._video_stream(container)
        except av.error.FFmpegError as error:
            if isinstance(error, FileNotFoundError | IsADirectoryError):
                raise UserError(f"The video {self.name} does not exist. Check the path.") from None
            if isinstance(error, MemoryError):  # not the file's fault
                raise
            damaged = isinstance(error, ValueError | EOFError)
            reason = "it is not a video, cut short or damaged. Replace it" if damaged else one_line(error)
            raise UserError(f"The video {self.name} cannot be read: {reason}.") from error

    def _video_stream(self, container: Any) -> Any:
        """Return the first stream of moving images; the cover of a sound file is not one."""
        streams = [
            stream for stream in container.streams.video if "attached_pic" not in (stream.disposition.name or "")
        ]
        if streams:
            streams[0].thread_type = "AUTO"
            return streams[0]
        if container.streams.audio:
            raise UserError(f"The file {self.name} has sound but no video. Leave it out.")
        raise UserError(f"The video {self.name} has no frames: it is incomplete or holds something else. Replace it.")

    def _read_stamps(self, container: Any, stream: Any) -> tuple[list[int], list[int], int]:
        """Return the time stamps of all frames and of the key frames, sorted, and the end of the last frame.

        AVI and raw streams store no times but those of decoding. Their frames are numbered instead, and cannot be
        searched.
        """
        if self._in_order:
            count = self._count_decoded(container, stream)
            return list(range(count)), [], count
        stamps, keys = {}, []
        count, seconds = 0, 0.0
        for packet in container.demux():
            if packet.dts is None and packet.pts is None and packet.size == 0:  # marks the end
                continue
            if packet.pts is not None:
                seconds = max(seconds, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            if packet.stream.index != stream.index:
                continue
            count += 1
            if packet.pts is None:
                self._in_order = True
                with self._opened() as again:
                    return self._read_stamps(*again)
            if not packet.is_discard:
                stamps[packet.pts] = packet.duration or 0
                keys += [packet.pts] * packet.is_keyframe
        if not stamps:
            raise UserError(f"The video {self.name} has no frames. Replace it.")
        self._check_complete(container, stream, count, seconds)
        last = max(stamps)
        return sorted(stamps), sorted(keys), last + stamps[last]

    def _count_decoded(self, container: Any, stream: Any) -> int:
        count = sum(1 for _ in container.decode(stream))
        if count == 0:
            raise UserError(f"The video {self.name} has no frames. Replace it.")
        return count

    def _check_complete(self, container: Any, stream: Any, frames: int, seconds: float) -> None:
        """Raise UserError if the header names more frames, or more seconds, than the file has."""
        if "mp4" in container.format.name and frames < stream.frames:
            raise UserError(
                f"The video {self.name} is cut short: it has {frames} of {stream.frames} frames. Replace it."
            )
        if "matroska" in container.format.name and container.duration is not None:
            expected = container.duration / 1e6
            if seconds < expected - LOST - 2 / float(stream.average_rate or 10):
                raise UserError(
                    f"The video {self.name} is cut short: it has {seconds:.1f} of {expected:.1f} seconds. Replace it."
                )

    def _decoded(self, container: Any, stream: Any, wanted: Sequence[int]) -> Iterator[Any]:
        """Yield the decoded frame that is shown at each of the ascending time stamps."""
        frames = self._stamped(container, stream)
        before: Any = None  # the last two decoded frames, and the stamp of the last one
        last: Any = None
        reached = -1
        for stamp in wanted:
            place = bisect_right(self._keys, stamp)
            key = self._keys[place - 1] if place else self._stamps[0]
            if key > self._stamps[0] and (last is None or key > reached):
                container.seek(key, stream=stream)
                frames, before, last = self._stamped(container, stream), None, None
            while last is None or reached < stamp:
                following = next(frames, None)
                if following is None:
                    break
                before, (reached, last) = last, following
            if last is None or (reached > stamp and before is None):
                seconds = (stamp - self._stamps[0]) * self._unit
                raise UserError(f"The video {self.name} is damaged: no frame at {seconds:.1f} s. Replace it.")
            yield before if reached > stamp else last

    def _stamped(self, container: Any, stream: Any) -> Iterator[tuple[int, Any]]:
        """Decode frames with their time stamps, or their numbers."""
        for number, frame in enumerate(container.decode(stream)):
            if self._in_order or frame.pts is not None:
                yield number if self._in_order else frame.pts, frame


def _container(av: Any, source: str | Path | BinaryIO) -> Any:
    if isinstance(source, str | Path):
        if Path(source).is_file() and Path(source).stat().st_size == 0:
            raise UserError(f"The video {source} is empty (0 bytes). Replace it.")
    else:
        source.seek(0)
    # without the prefix, FFmpeg would connect to a path such as "tcp://…"
    file = f"file:{source}" if isinstance(source, str | Path) else source
    # titles and other notes in a file may have any encoding
    return av.open(file, options={"format_whitelist": FORMATS}, metadata_errors="replace")


def pyav() -> Any:
    """Import PyAV.

    Raises:
        UserError: it is not installed.
    """
    try:  # transformers checks all imports of a model directory's code that are not inside `try`
        import av
    except ModuleNotFoundError as error:
        raise UserError("Reading a video needs PyAV: pip install 'sparse-vlm[video]'.") from error
    return av
