"""Handlers of the page's part for videos, without a browser."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from PIL import Image

from demo.models import OpenModel, open_model
from demo.videos.part import VideoPart
from demo.videos.watching import Watching, refusal
from sparse_vlm.devices import choose_device
from sparse_vlm.dtypes import DTYPES
from sparse_vlm.vlm.chat import answer
from sparse_vlm.vlm.videos.processor import VideoOptions
from tests.clips import grey_frames, write_clip

QUESTION = "What happens?"


@pytest.fixture(scope="module")
def opened(vlm_dir: Path) -> OpenModel:
    return open_model(vlm_dir, choose_device("cpu"), DTYPES["float32"], None)


@pytest.fixture
def part(opened: OpenModel) -> VideoPart:
    made = VideoPart(opened, 6)

    async def build() -> None:  # without an event loop gradio creates its own and does not close them
        with gr.Blocks():
            made.lay_out()

    with ThreadPoolExecutor(1) as thread:
        thread.submit(lambda: asyncio.run(build())).result()
    return made


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_clip(tmp_path / "a.mp4", grey_frames(20))


def test_a_clip_plays_and_is_asked_about(part: VideoPart, opened: OpenModel, clip: Path) -> None:
    session = Watching()
    playing: Iterator[dict[Any, Any]] = part.play(str(clip), session, 2, 3)
    first = next(playing)
    assert first[part.text] == "0.0 s: the model sees the last 1 frames of 3 tokens."
    assert max(first[part.shown].size) == 600
    assert list(part.ask(QUESTION, session))[-1]  # while it plays
    *_, final = playing
    assert final[part.text].startswith("1.5 s: the model sees the last 4 frames")
    options = VideoOptions(2, frame_tokens=3)
    expected = answer(opened.model, opened.processor, None, QUESTION, 6, videos=[clip], video_options=options)
    assert list(part.ask(QUESTION, session))[-1].strip() == expected
    again = part.play(str(clip), session, 2, 3)
    assert next(again)[part.text].startswith("0.0 s")  # from the beginning
    part.stop(session)
    assert list(again) == []
    assert list(part.ask(QUESTION, session))  # about what was seen


def test_a_webcam(part: VideoPart) -> None:
    session = Watching()
    for count in (1, 2):
        update = part.watch(Image.new("RGB", (64, 48)), session, 3)
        assert f"the last {count} frames of 3 tokens" in update[part.text]
    assert "the last 1 frames of 4 tokens" in part.watch(Image.new("RGB", (64, 48)), session, 4)[part.text]
    assert part.shown not in part.watch(None, session, 4)


def test_bad_input(part: VideoPart, tmp_path: Path, warnings: list[str]) -> None:
    (tmp_path / "notes.mp4").write_text("This is not a video.")
    session = Watching()
    assert list(part.play(None, session, 2, 3)) == []
    assert list(part.play(str(tmp_path / "notes.mp4"), session, 2, 3)) == []
    assert list(part.ask(QUESTION, session)) == []
    assert list(part.play(str(tmp_path / "notes.mp4"), session, 2, 3)) == []
    for text, warning in zip(("upload one first", "is not a video", "has played yet"), warnings, strict=False):
        assert text in warning
    assert len(warnings) == 4


def test_models_that_cannot_watch(dense_vlm_dir: Path, opened: OpenModel) -> None:
    assert refusal(opened) == ""
    dense = open_model(dense_vlm_dir, choose_device("cpu"), DTYPES["float32"], None)
    assert "no RoIs that could move" in refusal(dense)
