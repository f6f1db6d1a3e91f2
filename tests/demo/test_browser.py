"""The page in chromium, used as a visitor uses it."""

import base64
import json
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from tests.demo.conftest import Served
from tests.demo.files import write_uploads
from tests.demo.visitor import (
    PATIENCE,
    QUESTION,
    ask,
    changed,
    clear,
    click_box,
    set_number,
    source,
    wait_for_answers,
    wait_for_images,
    wait_for_text,
)

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.slow

# Records each text of the first model's growing answer.
WATCH = """() => {
    window.texts = [];
    new MutationObserver(() => {
        const answers = document.querySelectorAll('#chat-0 .bot.message');
        const text = answers.length ? answers[answers.length - 1].innerText.trim() : '';
        if (text !== window.texts.at(-1)) window.texts.push(text);
    }).observe(document.querySelector('#chat-0'), {subtree: true, childList: true, characterData: true});
}"""

# The effect of Ctrl-V with an image on the clipboard.
PASTE = """async (encoded) => {
    const bytes = Uint8Array.from(atob(encoded), character => character.charCodeAt(0));
    const data = new DataTransfer();
    data.items.add(new File([bytes], 'pasted.png', {type: 'image/png'}));
    const event = new ClipboardEvent('paste', {clipboardData: data, bubbles: true, cancelable: true});
    document.querySelector('#question textarea').dispatchEvent(event);
}"""


def test_an_image_is_answered_and_its_rois_are_drawn(
    page: "Page", image: Path, requests: list[str], screenshots: Path, served: Served
) -> None:
    page.screenshot(path=screenshots / "1_empty.png")
    page.evaluate(WATCH)
    ask(page, "What is it?", image)
    wait_for_answers(page, 1)
    texts: Any = page.evaluate("() => window.texts.filter(text => text)")
    assert len(set(texts)) > 2, "the answer did not stream"
    assert page.inner_text("#chat-0 .user.message").strip().endswith("What is it?")
    numbers = page.inner_text("#numbers")
    for part in ("vision tower", "each further token", "6", "16", "Memory"):
        assert part in numbers
    assert "6 tokens cover" in page.inner_text("#rois-text")
    source(page, "#rois")
    page.screenshot(path=screenshots / "2_answer.png", full_page=True)
    assert not [url for url in requests if not url.startswith((served.address, "data:", "blob:"))]


def test_the_panel_follows_its_controls(page: "Page", image: Path, screenshots: Path) -> None:
    ask(page, "What is it?", image, image)
    wait_for_answers(page, 1)
    drawn = source(page, "#rois")
    for slider, value in (("#step", 1), ("#token", 3), ("#image", 2)):
        set_number(page, slider, value)
        if slider != "#image":  # the same image twice
            drawn = changed(page, "#rois", drawn)
    page.wait_for_function("() => document.querySelector('#rois-text').innerText.includes('Step 1 of 3')")
    page.wait_for_function("() => document.querySelector('#rois-text').innerText.includes('token 3 alone')")
    set_number(page, "#step", 3)
    drawn = changed(page, "#rois", drawn)
    page.click("#colour >> text=step")
    drawn = changed(page, "#rois", drawn)
    page.screenshot(path=screenshots / "3_one_token.png", full_page=True)
    page.click("#rois img", position={"x": 200, "y": 100})
    page.wait_for_function("() => !document.querySelector('#rois-text').innerText.includes('token 3 alone')")
    page.get_by_role("tab", name="Attention").click()
    drawn = source(page, "#attention")
    assert "of its attention to this image" in page.inner_text("#attention-text")
    page.click("#answer-token input")
    page.click("[role=option] >> nth=1")
    changed(page, "#attention", drawn)
    page.screenshot(path=screenshots / "4_attention.png", full_page=True)
    page.click("#model label >> nth=1")
    page.wait_for_function("() => document.querySelector('#attention-text').innerText.length > 0")
    page.get_by_role("tab", name="Where it looks").click()
    page.wait_for_function("() => document.querySelector('#rois-text').innerText.includes('16 tokens cover 100%')")


def test_turns_retry_and_clear(page: "Page", image: Path) -> None:
    ask(page, "What is it?", image)
    wait_for_answers(page, 1)
    ask(page, "And its colour?")
    wait_for_answers(page, 2)
    answers = page.locator("#chat-0 .bot.message").all_inner_texts()
    page.evaluate(WATCH)
    page.click("#retry")
    # greedy: the same words again
    page.wait_for_function("last => window.texts.length > 1 && window.texts.at(-1) === last", arg=answers[-1].strip())
    wait_for_answers(page, 2)
    assert page.locator("#chat-0 .bot.message").all_inner_texts() == answers
    clear(page)
    page.click("#retry")
    page.wait_for_selector("[data-testid=toast-body] >> text=ask first")
    page.click("[data-testid=toast-close]")


def test_bad_uploads_and_the_next_question(
    page: "Page", image: Path, images: list[Image.Image], tmp_path: Path, screenshots: Path
) -> None:
    """Each file gets a message or an answer, and the next question is answered."""
    (tmp_path / "uploads").mkdir()
    for name, message in write_uploads(tmp_path / "uploads", images[0]).items():
        ask(page, f"What is in {name}?", tmp_path / "uploads" / name)
        if message is None:
            wait_for_answers(page, 1)
            assert page.locator("#chat-0 .user.message img").count() == 1
            clear(page)
            continue
        page.wait_for_selector(f"[data-testid=toast-body] >> text={name}")
        assert message in page.inner_text("[data-testid=toast-body]")
        page.wait_for_function("() => !document.querySelector('#question .thumbnail-item')")
        if name == "truncated.jpg":
            page.screenshot(path=screenshots / "5_bad_upload.png")
        page.click("[data-testid=toast-close]")
        assert page.input_value(QUESTION) == f"What is in {name}?"  # the typed text stays
        ask(page, "And this?", image)
        wait_for_answers(page, 1)
        clear(page)


def test_examples_paste_and_webcam(page: "Page", image: Path, served: Served, screenshots: Path) -> None:
    """The three other ways to attach an image, all in one question."""
    example = json.loads(served.examples.read_text())[0]
    page.click(f"text={example['question']}")
    wait_for_images(page, 1)
    assert page.input_value(QUESTION) == example["question"]
    page.evaluate(PASTE, base64.b64encode(image.read_bytes()).decode())
    wait_for_images(page, 2)
    page.click("button >> text=/^Webcam/")
    page.click("#webcam >> text=Click to Access Webcam")
    page.wait_for_function("() => document.querySelector('#webcam video')?.videoWidth > 0")
    page.click("#webcam button[aria-label='capture photo']")
    wait_for_images(page, 3)
    page.screenshot(path=screenshots / "6_webcam.png", full_page=True)
    page.press(QUESTION, "Enter")
    wait_for_answers(page, 1)
    assert page.locator("#chat-0 .user.message img").count() == 3
    page.click("button >> text=/^Webcam/")


def test_a_file_that_is_not_an_image_is_refused_before_it_is_sent(page: "Page", tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("This is not an image.")
    page.set_input_files("#question input[type=file]", tmp_path / "notes.txt")
    page.wait_for_selector("[data-testid=toast-body] >> text=notes.txt")
    page.click("[data-testid=toast-close]")


TYPED = "<button>x</button> 2*3*4 and __init__ &amp;\n1. first\n    ![x](http://127.0.0.1:1/md.png)"


def test_a_question_is_shown_as_it_was_typed(page: "Page", image: Path) -> None:
    ask(page, TYPED, image)
    wait_for_answers(page, 1)
    shown = page.locator("#chat-0 .user.message .md").inner_text()
    assert shown.replace("\N{NO-BREAK SPACE}", " ") == TYPED


def test_the_page_fetches_nothing_from_other_servers(page: "Page") -> None:
    """The browser itself refuses, even at a server that would answer."""
    requested: list[str] = []

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requested.append(self.path)
            self.send_error(404)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    fetch = """address => new Promise(done => {
        const image = new Image();
        image.onload = image.onerror = done;
        image.src = address;
    })"""
    with HTTPServer(("127.0.0.1", 0), Server) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        page.evaluate(fetch, f"http://127.0.0.1:{server.server_port}/md.png")
        server.shutdown()
    assert requested == []


def test_on_a_phone_in_dark_mode(browser: "Browser", served: Served, image: Path, screenshots: Path) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.set_default_timeout(PATIENCE)
    page.goto(f"{served.address}/?__theme=dark")
    page.wait_for_selector("#question textarea[aria-label=Question]")
    assert not page.is_visible("#token")
    page.screenshot(path=screenshots / "7_phone.png", full_page=True)
    ask(page, "What is it?", image)
    wait_for_answers(page, 1)
    assert page.is_visible("#token")
    assert page.get_attribute("#rois img", "alt") == "RoIs and sampling points (click to choose a token)"
    boxes = page.locator("#chat-0 .icon-button-wrapper:visible")
    assert all((box.bounding_box() or {"width": 0})["width"] > 8 for box in boxes.all())  # none is empty
    page.get_by_role("tab", name="Attention").click()
    source(page, "#attention")
    page.click("#draw-a-box")
    click_box(page, 0.1, 0.1)
    wait_for_text(page, "#box-text", "opposite corner of the box")
    click_box(page, 0.9, 0.5)
    wait_for_text(page, "#box-text", "10% to 90% from the left, 10% to 50% from the top")
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 390  # the page does not scroll sideways
    page.screenshot(path=screenshots / "8_phone_dark.png", full_page=True)
    page.close()
