"""Questions about a video while it plays: `sparse-vlm chat --stream`."""

import argparse
from collections.abc import Iterator

from sparse_vlm.cli.terminal import print_answer, read_lines
from sparse_vlm.errors import UserError
from sparse_vlm.videos.files import Frame
from sparse_vlm.videos.live import camera_frames, file_frames, is_camera
from sparse_vlm.videos.sampling import FPS
from sparse_vlm.vlm.videos.feed import Feed
from sparse_vlm.vlm.videos.stream import VideoStream

HELP = """\
/where   show what the model sees now
/wait    wait for the end of the video
/help    show this list
/exit    leave, as does Ctrl-D
Ctrl-C stops an answer. Everything else is a question about the last frames; it leaves no trace in the stream."""


def open_source(arguments: argparse.Namespace) -> Iterator[Frame]:
    """Open the file or camera of `--stream`.

    Raises:
        UserError: it cannot be read, or does not fit the other arguments.
    """
    if arguments.image or arguments.video or arguments.visual_tokens is not None:
        raise UserError("--stream shows the model nothing else: leave out --image, --video and --visual_tokens.")
    fps = FPS if arguments.fps is None else arguments.fps
    if not is_camera(arguments.stream):
        return file_frames(arguments.stream, fps)
    if arguments.question is not None:
        raise UserError("Questions about a camera are typed while it runs: leave the question out.")
    return camera_frames(arguments.stream, fps)


def watch(stream: VideoStream, frames: Iterator[Frame], arguments: argparse.Namespace) -> None:
    """Answer the question of the command line at the end of a video, or typed ones while it plays."""
    if arguments.question is not None:
        with Feed(stream, frames, own_rate=False) as feed:
            feed.wait_for_last()
        print_answer(stream.ask(arguments.question, arguments.max_new_tokens))
        return
    with Feed(stream, frames, own_rate=not is_camera(arguments.stream)) as feed:
        feed.wait_for_first()
        read_lines(lambda line: _run_line(feed, line, arguments.max_new_tokens))


def _run_line(feed: Feed, line: str, max_new_tokens: int) -> None:
    if line == "/help":
        print(HELP)
    elif line == "/where":
        feed.check()
        print(describe(feed))
    elif line == "/wait":
        feed.wait_for_last()
        print(describe(feed))
    elif line.startswith("/"):
        raise UserError(f"Unknown command {line.split()[0]}; /help lists all commands.")
    elif line:
        feed.check()
        print_answer(feed.stream.ask(line, max_new_tokens))


def describe(feed: Feed) -> str:
    """Write what the model sees now."""
    stream = feed.stream
    left_out = f"; {feed.skipped} left out, since the model is too slow for them" if feed.skipped else ""
    state = "The video has ended" if feed.ended else "The video plays"
    return f"{state}: at {stream.time or 0:.1f} s, the model sees the last {stream.frames} frames{left_out}."
