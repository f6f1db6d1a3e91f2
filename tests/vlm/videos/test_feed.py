"""Sources played into a stream, by the class and by `sparse-vlm chat --stream`."""

import io
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, sleep

import pytest
from PIL import Image

from sparse_vlm.cli import main
from sparse_vlm.errors import UserError
from sparse_vlm.videos.files import Frame
from sparse_vlm.vlm.chat import answer
from sparse_vlm.vlm.videos.feed import Feed
from sparse_vlm.vlm.videos.processor import VideoOptions
from sparse_vlm.vlm.videos.stream import VideoStream
from tests.clips import grey_frames, write_clip
from tests.vlm.conftest import Loaded

QUESTION = "What happens?"
OPTIONS = VideoOptions(fps=10, max_frames=32, frame_tokens=3)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "a.mp4", grey_frames(20))


def frames_at(*times: float) -> Iterator[Frame]:
    for time in times:
        yield Frame(Image.new("RGB", (8, 8)), time)


def test_frames_come_at_their_own_rate(vlm: Loaded) -> None:
    stream = VideoStream(*vlm, OPTIONS)
    with Feed(stream, frames_at(0, 0.5, 1)) as feed:
        feed.wait_for_first()
        begin = monotonic()
        assert stream.time == 0
        assert not feed.ended
        feed.wait_for_last()
        assert monotonic() - begin > 0.9
    assert (stream.seen, stream.time, feed.ended, feed.skipped) == (3, 1, True, 0)


def test_late_frames_are_left_out(vlm: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = VideoStream(*vlm, OPTIONS)
    add = stream.add

    def slow(frame: Image.Image, time: float) -> None:
        sleep(0.3)
        add(frame, time)

    monkeypatch.setattr(stream, "add", slow)
    times = [index / 20 for index in range(20)]
    with Feed(stream, frames_at(*times)) as feed:
        feed.wait_for_last()
    assert feed.skipped > 5
    assert feed.skipped + stream.seen == 20
    monkeypatch.undo()
    with Feed(stream := VideoStream(*vlm, OPTIONS), frames_at(*times), own_rate=False) as feed:
        feed.wait_for_last()
    assert (stream.seen, feed.skipped) == (20, 0)


def test_leaving_ends_the_frames(vlm: Loaded) -> None:
    begin = monotonic()
    with Feed(VideoStream(*vlm, OPTIONS), frames_at(0, 500)) as feed:
        feed.wait_for_first()
    assert monotonic() - begin < 100


def test_an_error_is_told_once_and_the_frames_before_it_stay(vlm: Loaded) -> None:
    def damaged() -> Iterator[Frame]:
        yield from frames_at(0)
        raise UserError("The video is damaged.")

    stream = VideoStream(*vlm, OPTIONS)
    with Feed(stream, damaged()) as feed:
        with pytest.raises(UserError, match="damaged"):
            feed.wait_for_last()
        feed.check()
        assert feed.ended
    assert "".join(stream.ask(QUESTION, 4))


def command(vlm_dir: Path, *options: str) -> list[str]:
    return ["chat", "--model", str(vlm_dir), "--dtype", "float32", "--max_new_tokens", "6", *options]


def test_command(vlm: Loaded, vlm_dir: Path, clip: Path, capsys: pytest.CaptureFixture) -> None:
    options = ["--stream", str(clip), "--fps", "5", "--frame_tokens", "3", "--timestamps"]
    assert main(command(vlm_dir, *options, QUESTION)) == 0
    expected = answer(*vlm, None, QUESTION, 6, videos=[clip], video_options=VideoOptions(5, None, 3, True))
    assert capsys.readouterr().out.strip() == expected


def test_terminal(
    vlm: Loaded, vlm_dir: Path, clip: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = f"What is it?\n/where\n/wait\n{QUESTION}\n{QUESTION}\n/help\n/image a.png\n/exit\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    assert main(command(vlm_dir, "--stream", str(clip), "--fps", "2", "--frame_tokens", "3")) == 0
    output = capsys.readouterr().out
    assert "The video has ended: at 1.5 s, the model sees the last 4 frames" in output
    expected = answer(*vlm, None, QUESTION, 6, videos=[clip], video_options=VideoOptions(2, None, 3))
    assert output.count(expected) >= 2
    assert "error: Unknown command /image" in output


def test_bad_input(vlm_dir: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "notes.txt").write_text("This is not a video.")
    cases = [
        (["--stream", str(tmp_path / "none.mp4")], "none.mp4 does not exist"),
        (["--stream", str(tmp_path / "notes.txt")], "cannot be read: it is not a video"),
        (["--stream", "/dev/video99"], "There is no camera /dev/video99"),
        (["--stream", "/dev/null"], "/dev/null cannot be read as a camera"),
        (["--stream", "/dev/null", QUESTION], "leave the question out"),
        (["--stream", str(clip), "--fps", "-1"], "fps must be a number above 0"),
        (["--stream", str(clip), "--video", str(clip)], "leave out --image, --video and --visual_tokens"),
    ]
    for options, sentence in cases:  # refused before the model is opened
        assert main(command(tmp_path / "no_model", *options)) == 2
        error = capsys.readouterr().err
        assert sentence in error
        assert error.count("\n") == 1
    assert main(command(vlm_dir, "--stream", str(clip), "--max_frames", "1", QUESTION)) == 2
    assert "max_frames of at least 2, got 1" in capsys.readouterr().err
