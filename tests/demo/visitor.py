"""What a visitor does on the page, with playwright."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Page

PATIENCE = 120_000  # milliseconds, for machines with other work
QUESTION = "#question textarea"
# True once the chat has `count` answers and no placeholder of gradio's for an answer that has not begun.
ANSWERED = """([chat, count]) => {
    const answers = [...document.querySelectorAll(`${chat} .bot.message`)];
    return answers.length === count && !answers.some(answer => answer.innerText.includes('Loading content'));
}"""


def ask(page: "Page", question: str, *files: Path) -> None:
    """Send a question without waiting for the answer."""
    if files:
        page.set_input_files("#question input[type=file]", files)
        wait_for_images(page, len(files))
    page.fill(QUESTION, question)
    page.press(QUESTION, "Enter")


def wait_for_images(page: "Page", count: int) -> None:
    """Wait until `count` images are attached to the question."""
    page.wait_for_function(
        "count => document.querySelectorAll('#question .thumbnail-item').length === count", arg=count
    )


def wait_for_answers(page: "Page", count: int) -> None:
    """Wait until both models have answered `count` questions and the page is complete."""
    for chat in ("#chat-0", "#chat-1"):
        page.wait_for_function(ANSWERED, arg=[chat, count])
    page.wait_for_selector("#numbers table")  # appears last; the previous one is removed when an answer begins


def clear(page: "Page") -> None:
    page.click("#clear")
    page.wait_for_function("() => !document.querySelector('#chat-0 .message, #chat-1 .message, #rois img')")


def source(page: "Page", drawing: str) -> str:
    """Wait for a complete drawing and return its address."""
    page.wait_for_function("name => document.querySelector(name + ' img')?.naturalWidth === 600", arg=drawing)
    return str(page.get_attribute(f"{drawing} img", "src"))


def changed(page: "Page", drawing: str, old: str) -> str:
    """Wait for another drawing than `old` and return its address."""
    page.wait_for_function("([name, old]) => document.querySelector(name + ' img')?.src !== old", arg=[drawing, old])
    return source(page, drawing)


def set_number(page: "Page", slider: str, value: int) -> None:
    page.fill(f"{slider} input[type=number]", str(value))
    page.press(f"{slider} input[type=number]", "Tab")


def wait_for_text(page: "Page", place: str, text: str) -> None:
    page.wait_for_function(
        "([place, text]) => document.querySelector(place)?.innerText.includes(text)", arg=[place, text]
    )


def click_box(page: "Page", x: float, y: float) -> None:
    """Click a place of the image on which a box is drawn, in [0, 1]; margins may surround it."""
    shown = page.wait_for_selector("#box img")
    assert shown is not None
    page.wait_for_function("() => document.querySelector('#box img').naturalWidth === 768")
    element = shown.bounding_box()
    assert element is not None
    width, height = shown.evaluate("image => [image.naturalWidth, image.naturalHeight]")
    scale = min(element["width"] / width, element["height"] / height)
    left, top = (element["width"] - scale * width) / 2, (element["height"] - scale * height) / 2
    page.click("#box img", position={"x": left + x * scale * width, "y": top + y * scale * height})
