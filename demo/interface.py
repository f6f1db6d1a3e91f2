"""The layout of the page. `demo.events` handles its events."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from demo.examples import Example
from demo.models import OpenModel
from demo.panel import ALL
from demo.session import Session
from sparse_vlm.draw import COLOURS
from sparse_vlm.errors import UserError

INTRODUCTION = (
    "Send an image (upload, paste, drop, or webcam) and ask about it. Next to the chat: where the visual tokens look, "
    "what the answer attends to, and how long it took."
)
CSS = """
[aria-label="Share"] { display: none }  /* this button sends the image to the Hugging Face hub */
#numbers table { width: 100%; border-collapse: collapse }
#numbers :is(table, tr) { border: 0 }
#numbers :is(th, td) { border: 0; border-bottom: 1px solid var(--border-color-primary); padding: 4px 8px }
#numbers tr:last-child td { border-bottom: 0 }
#numbers :is(th, td):not(:first-child) { text-align: right; font-variant-numeric: tabular-nums }
/* next to a question Share is the only button: without it, an empty box with a border would remain */
[class*="message-buttons"]:not(:has(button:not([aria-label="Share"]))) { display: none }
"""
LABEL_QUESTION = """() => document.querySelector("#question textarea").setAttribute("aria-label", "Question")"""


@dataclass(frozen=True)
class Page:
    """The components that event handlers read or write.

    Attributes:
        session: the visitor's `Session`.
        question: text and images to send.
        chats: a conversation for each model.
        settings: temperature, top-p, maximum new tokens, then the visual tokens of each model that is not `fixed`.
        box: the image on which the visitor draws a box, in `box_area`, which is hidden unless one is being drawn.
        controls: the model, then the fields of `demo.panel.Choice` in their order.
    """

    session: gr.State
    question: gr.MultimodalTextbox
    chats: list[gr.Chatbot]
    stop: gr.Button
    retry: gr.Button
    look_again: gr.Button
    draw: gr.Button
    clear: gr.Button
    box_area: gr.Column
    box: gr.Image
    box_text: gr.Markdown
    remove_box: gr.Button
    webcam: gr.Image
    settings: list[gr.Slider]
    rois: gr.Image
    rois_text: gr.Markdown
    attention: gr.Image
    attention_text: gr.Markdown
    numbers: gr.Markdown
    controls: list[Any]


def lay_out(models: Sequence[OpenModel], examples: Sequence[Example], max_new_tokens: int) -> Page:
    """Build the page inside the current `gr.Blocks`; `max_new_tokens` is the initial value of its slider."""
    session = gr.State(Session())
    gr.Markdown(f"# {' and '.join(opened.name for opened in models)}\n{INTRODUCTION}")
    with gr.Row():
        with gr.Column(scale=3, min_width=480):
            with gr.Row():
                chats = [
                    gr.Chatbot(
                        label=opened.name,
                        elem_id=f"chat-{k}",
                        height=430,
                        sanitize_html=True,
                        buttons=["copy"],
                        allow_file_downloads=False,
                    )
                    for k, opened in enumerate(models)
                ]
            question = gr.MultimodalTextbox(
                placeholder="Ask about the image …",
                file_count="multiple",
                file_types=["image"],
                show_label=False,
                elem_id="question",
                max_plain_text_length=100_000,  # gradio turns longer texts into a file
            )
            takes_boxes = any(not opened.fixed for opened in models)
            with gr.Row():
                stop, retry, look_again, draw, clear = (
                    gr.Button(name, elem_id=name.lower().replace(" ", "-"), size="sm", min_width=80, visible=visible)
                    for name, visible in (
                        ("Stop", True),
                        ("Retry", True),
                        ("Look again", takes_boxes),
                        ("Draw a box", takes_boxes),
                        ("Clear", True),
                    )
                )
            with gr.Column(visible=False, elem_id="box-area") as box_area:
                box_text = gr.Markdown(elem_id="box-text")
                box = gr.Image(
                    show_label=False,  # it would cover a part of the image
                    alt_text="the image on which a box is drawn",
                    elem_id="box",
                    interactive=False,
                    format="png",
                    height=360,
                    buttons=[],
                )
                remove_box = gr.Button("Remove the box", elem_id="remove-box", size="sm")
            counts = _lay_out_counts(models)
            gr.Examples([[{"text": e.question, "files": [str(e.image)]}] for e in examples], [question])
            with gr.Accordion("Webcam", open=False):
                webcam = gr.Image(sources=["webcam"], type="filepath", show_label=False, elem_id="webcam")
            with gr.Accordion("Generation settings", open=False):
                settings = [
                    gr.Slider(0, 2, 0, step=0.05, label="Temperature (0: greedy)", elem_id="temperature"),
                    gr.Slider(0.05, 1, 1, step=0.05, label="Top-p", elem_id="top-p"),
                    gr.Slider(
                        1,
                        max(1024, max_new_tokens),
                        max_new_tokens,
                        step=1,
                        label="Maximum new tokens",
                        elem_id="max-tokens",
                    ),
                    *counts,
                ]
        with gr.Column(scale=2, min_width=360):
            rois, rois_text, attention, attention_text, controls = _lay_out_panel(models)
            numbers = gr.Markdown(elem_id="numbers")
    return Page(
        session,
        question,
        chats,
        stop,
        retry,
        look_again,
        draw,
        clear,
        box_area,
        box,
        box_text,
        remove_box,
        webcam,
        settings,
        rois,
        rois_text,
        attention,
        attention_text,
        numbers,
        controls,
    )


def warn(error: UserError) -> None:
    """Show an error on the page; gradio renders HTML, and file names come from the visitor."""
    gr.Warning(html.escape(str(error)))


def _lay_out_counts(models: Sequence[OpenModel]) -> list[gr.Slider]:
    """A slider for each model that can have other numbers of visual tokens, and a sentence for each that cannot."""
    sliders = []
    for k, opened in enumerate(models):
        name = f" of {opened.name}" if len(models) > 1 else ""
        if opened.fixed:
            gr.Markdown(f"Visual tokens{name}: {opened.fixed}", elem_id=f"fixed-{k}")
            continue
        own, least, most = opened.token_range
        trained = opened.model.model.vision_tower.encoder.config.token_counts
        sliders.append(
            gr.Slider(
                least,
                most,
                own,
                step=1,
                label=f"Visual tokens{name}",
                info=f"of each image, for the next answer; the encoder was trained with {trained}",
                elem_id=f"visual-tokens-{k}",
            )
        )
    return sliders


def _lay_out_panel(models: Sequence[OpenModel]) -> tuple[gr.Image, gr.Markdown, gr.Image, gr.Markdown, list[Any]]:
    names = [(opened.name, k) for k, opened in enumerate(models)]
    with gr.Row():
        model = gr.Radio(names, value=0, label="Model", visible=len(models) > 1, elem_id="model")
        image = gr.Slider(1, 2, 1, step=1, label="Image", visible=False, elem_id="image")
    with gr.Tab("Where it looks"):
        rois = _drawing("rois", "RoIs and sampling points (click to choose a token)")
        rois_text = gr.Markdown(elem_id="rois-text")
        step = gr.Slider(1, 2, 1, step=1, label="Sampling step", visible=False, elem_id="step")
        token = gr.Slider(ALL, 1, ALL, step=1, label="Token (0: all)", visible=False, elem_id="token")
        with gr.Row():
            colour = gr.Radio(list(COLOURS), value=COLOURS[0], label="Colour by", visible=False, elem_id="colour")
            points = gr.Checkbox(True, label="Sampling points", visible=False, elem_id="points")
    with gr.Tab("Attention"):
        attention = _drawing("attention", "Attention of the answer to the visual tokens, spread over their RoIs")
        attention_text = gr.Markdown(elem_id="attention-text")
        names = [("the whole answer", ALL)]
        answer_token = gr.Dropdown(names, value=ALL, label="Token of the answer", visible=False, elem_id="answer-token")
    return rois, rois_text, attention, attention_text, [model, image, step, token, colour, points, answer_token]


def _drawing(name: str, label: str) -> gr.Image:
    return gr.Image(
        label=label,
        alt_text=label,
        elem_id=name,
        interactive=False,
        format="png",
        image_mode="RGBA",  # the margin around the image is transparent
        height=360,
        buttons=["fullscreen"],
    )
