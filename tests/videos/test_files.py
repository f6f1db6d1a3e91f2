"""Video files of many kinds, made on the spot."""

import io
import tracemalloc
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparse_vlm.errors import UserError
from sparse_vlm.videos.files import VideoFile
from tests.clips import STEP, corner_frame, grey_frames, write_clip

FRAMES = 20
# file name -> how it is encoded
KINDS: dict[str, dict[str, Any]] = {
    "h264.mp4": {},
    "h264.mkv": {"sound": True},
    "h264.ts": {},
    "h264.mov": {},
    "short_gops.mp4": {"options": {"g": "4"}},
    "vp8.webm": {"codec": "libvpx", "options": {"auto-alt-ref": "1", "lag-in-frames": "10"}},
    "vp9.webm": {"codec": "libvpx-vp9"},
    "mpeg4.avi": {"codec": "mpeg4"},
    "mjpeg.avi": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "b_frames.avi": {"codec": "mpeg4", "options": {"bf": "2", "qmax": "2"}},
    "h264.avi": {},
    "raw.h264": {"rate": 25},
    "a.gif": {"codec": "gif", "pix_fmt": "rgb8"},
    "a.mpg": {"codec": "mpeg1video", "rate": 25},
    "ten_bits.mp4": {"codec": "libx265", "pix_fmt": "yuv420p10le", "options": {"x265-params": "log-level=none"}},
    "full_range.mp4": {"pix_fmt": "yuvj420p"},
    "rgb.mkv": {"codec": "ffv1", "pix_fmt": "bgr0"},
}


def numbers(video: VideoFile, indices: list[int]) -> list[float]:
    """Return the numbers of decoded frames by their grey value."""
    return [float(np.asarray(frame.image).mean()) / STEP - 1 for frame in video.frames(indices)]


@pytest.mark.parametrize("name", KINDS)
def test_the_frames_of_a_file(tmp_path: Path, name: str) -> None:
    settings = KINDS[name]
    frames = grey_frames(FRAMES)
    if "gif" in name:  # whose eight values of grey tell four frames apart
        frames = [frame for frame in frames[::5] for _ in range(5)]
    video = VideoFile(write_clip(tmp_path / name, frames, **settings))
    rate = settings.get("rate", 10)
    assert len(video) == FRAMES
    assert np.allclose(video.times, np.arange(FRAMES) / rate, atol=1e-3)
    assert video.duration == pytest.approx(FRAMES / rate, abs=0.02)
    for indices in (list(range(FRAMES)), [0, 3, 4, 11, 19], [13], [19]):
        expected = [index // 5 * 5 if "gif" in name else index for index in indices]
        assert np.allclose(numbers(video, indices), expected, atol=3.6 if "gif" in name else 0.45)
    assert [frame.time for frame in video.frames([0, 7])] == [video.times[0], video.times[7]]


def test_a_variable_frame_rate(tmp_path: Path) -> None:
    times = [0, 0.1, 0.5, 2, 2.05]
    for name in ("a.mp4", "a.mkv"):
        video = VideoFile(write_clip(tmp_path / name, grey_frames(5), times=times))
        assert video.times == pytest.approx(times, abs=1e-3)
        assert np.allclose(numbers(video, [0, 2, 4]), [0, 2, 4], atol=0.45)


@pytest.mark.parametrize(("rotation", "red"), [(0, (0, 0)), (90, (0, 1)), (180, (1, 1)), (-90, (1, 0))])
def test_the_rotation_of_a_telephone_is_applied(tmp_path: Path, rotation: int, red: tuple[int, int]) -> None:
    video = VideoFile(write_clip(tmp_path / "a.mp4", [corner_frame()] * 3, rotation=rotation))
    frame = next(video.frames([1])).image
    assert frame.size == ((48, 64) if rotation % 180 else (64, 48))
    pixels = np.asarray(frame)
    corners = {(x, y): pixels[4 - 9 * y, 4 - 9 * x] for x in (0, 1) for y in (0, 1)}
    reds = [place for place, pixel in corners.items() if np.allclose(pixel, (255, 0, 0), atol=12)]
    assert reds == [red]


def test_a_rotation_by_another_angle_is_refused(tmp_path: Path) -> None:
    video = VideoFile(write_clip(tmp_path / "a.mp4", [corner_frame()] * 3, rotation=45))
    with pytest.raises(UserError, match="not a multiple of 90°"):
        list(video.frames([0]))


def test_pixels_that_are_no_squares(tmp_path: Path) -> None:
    for aspect, size in ((Fraction(2), (128, 48)), (Fraction(1, 2), (64, 96))):
        video = VideoFile(write_clip(tmp_path / "a.mp4", grey_frames(3), sample_aspect_ratio=aspect))
        assert next(video.frames([0])).image.size == size


def test_transparent_pixels_are_white(tmp_path: Path) -> None:
    from PIL import Image

    image = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), (0, 0, 16, 32))
    image.save(tmp_path / "a.gif", save_all=True, append_images=[image.rotate(90)], duration=100)
    first = next(VideoFile(tmp_path / "a.gif").frames([0])).image
    assert [first.getpixel((x, 4)) for x in (4, 28)] == [(255, 0, 0), (255, 255, 255)]


def hdr_clip(path: Path, nits: list[float]) -> Path:
    """A video of one frame in HDR10 (PQ), a stripe for each luminance in cd/m²."""
    import av

    light = np.array(nits) / 10000
    powers = light**0.1593017578125
    coded = ((0.8359375 + 18.8515625 * powers) / (1 + 18.6875 * powers)) ** 78.84375  # SMPTE ST 2084
    pixels = np.round(65535 * np.repeat(coded, 64)[None, :, None].repeat(64, 0).repeat(3, 2)).astype(np.uint16)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx265", rate=10, options={"x265-params": "log-level=none", "crf": "2"})
        stream.width, stream.height, stream.pix_fmt = pixels.shape[1], 64, "yuv420p10le"
        frame: Any = av.VideoFrame.from_ndarray(pixels, format="rgb48le")
        frame = frame.reformat(format="yuv420p10le", dst_colorspace="bt2020", dst_color_range=1)
        for target in (frame, stream.codec_context):
            target.color_trc, target.color_primaries, target.colorspace, target.color_range = 16, 9, 9, 1
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def test_hdr_becomes_srgb(tmp_path: Path) -> None:
    nits = [0.0, 10, 50, 100, 203, 1000]
    image = next(VideoFile(hdr_clip(tmp_path / "hdr.mp4", nits)).frames([0])).image
    linear = np.minimum(1, np.array(nits) / 203)  # reference white of BT.2408
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    found = np.asarray(image)[32, 32::64, 0]
    assert np.allclose(found, 255 * srgb, atol=5)


@pytest.mark.parametrize("source", ["path", "text", "open", "bytes"])
def test_kinds_of_sources(tmp_path: Path, source: str) -> None:
    path = write_clip(tmp_path / "a.mp4", grey_frames(6))
    sources = {"path": path, "text": str(path), "open": path.open("rb"), "bytes": io.BytesIO(path.read_bytes())}
    video = VideoFile(sources[source])
    assert np.allclose(numbers(video, [0, 5]), [0, 5], atol=0.45)
    assert np.allclose(numbers(video, [2]), [2], atol=0.45)
    sources["open"].close()


def cut(path: Path, share: float) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def test_bad_files(tmp_path: Path) -> None:
    frames = grey_frames(FRAMES)
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("Not a video.\n" * 50)
    (tmp_path / "noise.mp4").write_bytes(bytes(range(256)) * 40)
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXTINF:1,\n/etc/passwd\n#EXT-X-ENDLIST\n")
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile a.mp4\n")
    from PIL import Image

    Image.new("RGB", (32, 32)).save(tmp_path / "image.png")
    write_clip(tmp_path / "sound.m4a", [], sound=True)
    for name, settings in {
        "no_index.mp4": {},
        "half.mp4": {"container_options": {"movflags": "faststart"}},
        "half.mkv": {},
        "half.webm": {"codec": "libvpx-vp9"},
        "half.avi": {"codec": "mpeg4"},
    }.items():
        cut(write_clip(tmp_path / name, frames, **settings), 0.6)
    sentences = {
        "none.mp4": "does not exist",
        ".": "does not exist",
        "tcp:/127.0.0.1:9": "does not exist",
        "empty.mp4": r"is empty \(0 bytes\)",
        "notes.txt": "cannot be read: it is not a video",
        "noise.mp4": "cannot be read: it is not a video",
        "list.m3u8": "cannot be read: it is not a video",
        "list.mp4": "cannot be read: it is not a video",
        "image.png": "cannot be read: it is not a video",
        "sound.m4a": "has sound but no video",
        "no_index.mp4": "has no frames: it is incomplete",
        "half.mp4": "is cut short: it has 1 of 20 frames",
        "half.mkv": "cut short|no frames",
        "half.webm": r"is cut short: it has 0.\d of 2.0 seconds",
        "half.avi": "cut short",
    }
    for name, sentence in sentences.items():
        with pytest.raises(UserError, match=sentence) as caught:
            VideoFile(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_damaged_frame_is_an_error(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mkv", [np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)] * 10)
    data = bytearray(path.read_bytes())
    data[len(data) // 4 : len(data) // 2] = bytes(len(data) // 2 - len(data) // 4)
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"The video .*a\.mkv"):
        list(VideoFile(path).frames(list(range(10))))


def test_a_cover_is_no_video(tmp_path: Path) -> None:
    import av

    with av.open(str(tmp_path / "a.m4a"), "w", format="mp4") as container:
        audio: Any = container.add_stream("aac", rate=16000)
        cover: Any = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        container.mux(cover.encode(av.VideoFrame.from_ndarray(corner_frame(), format="rgb24")))
        container.mux(cover.encode(None))
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), "fltp", "mono")
        silence.sample_rate, silence.pts = 16000, 0
        container.mux(audio.encode(silence))
        container.mux(audio.encode(None))
    with pytest.raises(UserError, match="has sound but no video"):
        VideoFile(tmp_path / "a.m4a")


def test_memory_does_not_grow_with_the_video(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", grey_frames(1, 320, 240) * 300, options={"g": "50"})
    tracemalloc.start()
    try:
        for _ in VideoFile(path).frames(list(range(300))):
            pass
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20 * 320 * 240 * 3  # PIL and numpy report their pixels


def test_a_file_of_one_frame(tmp_path: Path) -> None:
    video = VideoFile(write_clip(tmp_path / "a.mp4", grey_frames(1)))
    assert video.times == [0.0]
    assert video.duration > 0
    assert len(list(video.frames([0]))) == 1


def test_a_title_in_another_encoding(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", grey_frames(2), title="Fluss")
    path.write_bytes(path.read_bytes().replace(b"Fluss", "Flüße".encode("latin-1")))
    assert len(VideoFile(path)) == 2
