"""A clip in chromium: it plays with its RoIs moving, and answers meanwhile."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.clips import grey_frames, write_clip
from tests.demo.conftest import Served
from tests.demo.visitor import PATIENCE, changed, source, wait_for_text

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.slow


def test_a_clip_plays_and_is_asked_about(browser: "Browser", served: Served, tmp_path: Path, screenshots: Path) -> None:
    clip = write_clip(tmp_path / "a.mp4", grey_frames(30), rate=5)
    (tmp_path / "notes.mp4").write_text("This is not a video.")
    page = browser.new_page(viewport={"width": 1400, "height": 1100})
    page.set_default_timeout(PATIENCE)
    page.goto(served.address)
    page.click("#video > button")
    page.set_input_files("#clip input[type=file]", clip)
    drawn = source(page, "#video-shown")
    changed(page, "#video-shown", drawn)
    page.fill("#video-question textarea, #video-question input", "What happens?")
    page.press("#video-question textarea, #video-question input", "Enter")
    page.wait_for_function("() => document.querySelector('#video-answer textarea, #video-answer input').value")
    wait_for_text(page, "#video-text", "the model sees the last")
    page.screenshot(path=screenshots / "9_video.png", full_page=True)
    page.click("#video-stop")
    page.click("#clip button[aria-label*=Remove], #clip button[aria-label*=Clear]")
    page.set_input_files("#clip input[type=file]", tmp_path / "notes.mp4")
    page.wait_for_selector("[data-testid=toast-body] >> text=is not a video")
    page.close()
