"""Frames of files and cameras. There is no camera here: FFmpeg's test source stands for one."""

from pathlib import Path

import av
import pytest

from sparse_vlm.errors import UserError
from sparse_vlm.videos import live
from sparse_vlm.videos.live import camera_frames, file_frames, is_camera
from tests.clips import grey_frames, write_clip


def test_file(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mp4", grey_frames(20))
    assert not is_camera(clip)
    frames = list(file_frames(clip, 5))
    assert [frame.time for frame in frames] == pytest.approx([index / 5 for index in range(10)])
    assert len(list(file_frames(clip, 100))) == 20


def test_camera(monkeypatch: pytest.MonkeyPatch) -> None:
    source = "testsrc=size=64x48:rate=30:duration=2"
    opened = av.open
    monkeypatch.setattr(av, "open", lambda device, format: opened(device, format="lavfi"))
    frames = list(camera_frames(source, 4))
    assert [frame.time for frame in frames] == pytest.approx([index / 4 for index in range(8)], abs=0.04)
    assert frames[0].image.size == (64, 48)
    assert len(list(camera_frames(source, 60))) == 60  # no more than it gives


def test_not_a_camera() -> None:
    assert is_camera("/dev/null")
    with pytest.raises(UserError, match=r"^/dev/null cannot be read as a camera: .*\.$"):
        camera_frames("/dev/null")
    with pytest.raises(UserError, match="There is no camera /dev/video99: connect one, or give a video file"):
        is_camera("/dev/video99")
    with pytest.raises(UserError, match="fps must be a number above 0"):
        camera_frames("/dev/null", 0)


def test_a_camera_that_stops() -> None:
    class Broken:
        def __enter__(self) -> None: ...

        def __exit__(self, *error: object) -> None: ...

        def decode(self, video: int) -> None:
            raise av.error.OSError(19, "No such device")

    with pytest.raises(UserError, match=r"The camera /dev/video0 stopped: .*No such device"):
        next(live._read(av, Broken(), 2, "/dev/video0"))
