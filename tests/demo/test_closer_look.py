"""Numbers of visual tokens, boxes and second looks, in chromium."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.demo.visitor import ask, clear, click_box, set_number, source, wait_for_answers, wait_for_text

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.slow

TOAST = "[data-testid=toast-body]"


def close_toast(page: "Page", text: str) -> None:
    """Wait for a warning and close it."""
    page.wait_for_selector(f"{TOAST} >> text={text}")
    assert page.locator(TOAST).count() == 1
    page.click("[data-testid=toast-close]")
    page.wait_for_selector(TOAST, state="detached")


def test_the_slider_changes_the_number_of_visual_tokens(page: "Page", image: Path, screenshots: Path) -> None:
    assert page.input_value("#visual-tokens-0 input[type=number]") == "6"
    assert "dense ViT" in page.inner_text("#fixed-1")
    assert page.locator("#visual-tokens-1").count() == 0
    set_number(page, "#visual-tokens-0", 11)
    ask(page, "What is it?", image)
    wait_for_answers(page, 1)
    source(page, "#rois")
    assert "11 tokens cover" in page.inner_text("#rois-text")
    numbers = page.inner_text("#numbers")
    assert numbers.split("visual tokens of an image")[1].split()[:2] == ["11", "16"]
    tower = numbers.split("vision tower")[1].split()
    assert float(tower[0]) > 0
    assert "time to the first token" in numbers
    page.screenshot(path=screenshots / "9_eleven_tokens.png", full_page=True)
    set_number(page, "#visual-tokens-0", 3)
    ask(page, "And now?")
    wait_for_answers(page, 2)
    assert "3 tokens cover" in page.inner_text("#rois-text")
    set_number(page, "#visual-tokens-0", 6)
    page.click("#retry")
    wait_for_text(page, "#rois-text", "6 tokens cover")
    wait_for_answers(page, 2)


def test_a_box_on_the_image_is_asked_about(page: "Page", image: Path, screenshots: Path) -> None:
    page.click("#draw-a-box")
    close_toast(page, "There is no image to draw on")
    page.set_input_files("#question input[type=file]", image)
    page.wait_for_selector("#question .thumbnail-item")
    page.click("#draw-a-box")
    wait_for_text(page, "#box-text", "Click two opposite corners")
    click_box(page, 0.25, 0.25)
    wait_for_text(page, "#box-text", "opposite corner of the box")
    click_box(page, 0.25, 0.75)
    close_toast(page, "The box has no area")
    click_box(page, 0.75, 0.75)
    wait_for_text(page, "#box-text", "25% to 75% from the left, 25% to 75% from the top")
    page.screenshot(path=screenshots / "10_box.png", full_page=True)
    page.click("#remove-box")
    page.wait_for_selector("#box-area", state="hidden")
    page.click("#draw-a-box")
    wait_for_text(page, "#box-text", "Click two opposite corners")
    click_box(page, 0.5, 0.5)
    wait_for_text(page, "#box-text", "opposite corner of the box")
    ask(page, "What is it?")
    close_toast(page, "one corner only")
    click_box(page, 0.1, 0.1)
    wait_for_text(page, "#box-text", "10% to 50% from the left")
    ask(page, "What is it?")
    wait_for_answers(page, 1)
    page.wait_for_selector("#box-area", state="hidden")
    assert page.locator("#chat-0 .user.message img").count() == 1
    boxed, whole = (page.get_attribute(f"#chat-{k} .user.message img", "src") for k in (0, 1))
    assert boxed != whole
    assert "15 tokens (9 of them for the box) cover" in page.inner_text("#rois-text")
    assert "6 + 9 for the box" in page.inner_text("#numbers")
    assert "Asked without the box. Only a SparseFormer takes" in page.inner_text("#chat-1 .bot.message")
    page.screenshot(path=screenshots / "11_asked_about_a_box.png", full_page=True)


def test_look_again(page: "Page", image: Path, screenshots: Path) -> None:
    page.click("#look-again")
    close_toast(page, "ask first")
    ask(page, "What is it?", image)
    wait_for_answers(page, 1)
    first = page.inner_text("#chat-0 .bot.message").strip()
    page.click("#look-again")
    wait_for_text(page, "#rois-text", "15 tokens (9 of them for the box) cover")
    wait_for_text(page, "#chat-0", "Looked again, more closely inside the box.")
    page.wait_for_selector("#numbers table")
    page.screenshot(path=screenshots / "12_looked_again.png", full_page=True)
    assert page.locator("#chat-0 .bot img").count() == 1
    assert page.locator("#chat-1 .bot img").count() == 0
    assert first in page.inner_text("#chat-0")
    assert "Asked again without a box" in page.inner_text("#chat-1")
    assert "6 + 9 for the box" in page.inner_text("#numbers")
    source(page, "#rois")
    ask(page, "And its colour?")
    page.wait_for_function("() => document.querySelectorAll('#chat-0 .user.message').length === 2")
    page.wait_for_selector("#numbers table")
    clear(page)
