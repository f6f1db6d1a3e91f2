"""Handlers of the page's events. They change the visitor's session and return the new content of the page."""

import html
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.processing_utils import save_pil_to_cache
from gradio.utils import get_upload_folder

from demo import panel
from demo.answers import answer
from demo.generation import Generation
from demo.interface import Page
from demo.models import OpenModel
from demo.panel import ALL, Choice
from demo.session import SentImage, Session
from demo.uploads import open_upload
from sparse_vlm.errors import UserError
from sparse_vlm.vlm.decoding import Decoding

Update = dict[Any, Any]  # component of the page -> its new value
SHOWN_SIDE = 768  # pixels of the longer side of an image's copy in the chat


class Events:
    """The handlers of a page.

    Args:
        page: the components to update.
        models: one or two; all of them answer each question.
        max_megapixels: largest uploaded image.
        max_images: most images in a question.
    """

    def __init__(self, page: Page, models: Sequence[OpenModel], max_megapixels: float, max_images: int) -> None:
        self.page, self.models = page, models
        self.max_megapixels, self.max_images = max_megapixels, max_images

    def ask(
        self, message: dict[str, Any], session: Session, temperature: float, top_p: float, max_new_tokens: int
    ) -> Iterator[Update]:
        """Take a question and stream the answers.

        A warning names each image that cannot be opened; the text and the other images stay in the box. A refused
        question stays there as well.
        """
        images, good = [], []
        for path in message["files"]:
            try:
                images.append(self._receive(path))
                good.append(path)
            except UserError as error:
                _warn(error)
        if len(good) < len(message["files"]):
            yield {self.page.question: {"text": message["text"], "files": good}}
            return
        try:
            if len(images) > self.max_images:
                raise UserError(f"{len(images)} images are too many for one question: send at most {self.max_images}.")
            decoding = Decoding(temperature, top_p)
            session.begin(message["text"], images)
        except UserError as error:
            _warn(error)
            yield {self.page.question: gr.skip()}
            return
        yield {self.page.question: {"text": "", "files": []}}
        try:
            yield from self._answer(session, decoding, int(max_new_tokens))
        except UserError as error:
            session.turns.pop()
            _warn(error)
            yield self._chats(session) | {self.page.question: message}

    def retry(self, session: Session, temperature: float, top_p: float, max_new_tokens: int) -> Iterator[Update]:
        """Answer the last question again; if this is refused, its previous answers stay."""
        try:
            session.check_retry()
            yield from self._answer(session, Decoding(temperature, top_p), int(max_new_tokens))
        except UserError as error:
            _warn(error)
            yield self._chats(session)

    def stop(self, session: Session) -> None:
        """End the current answer; its text so far stays."""
        session.stopping = True

    def clear(self, session: Session) -> Update:
        """Delete the conversation; the text in the question box stays."""
        session.clear()
        page = self.page
        return self._chats(session) | self.update_panel(session, 0) | {page.numbers: ""}

    def attach_webcam(self, path: str | None, message: dict[str, Any]) -> Update:
        """Attach the webcam's image to the question."""
        if path is None:
            return {self.page.question: gr.skip()}
        return {
            self.page.question: {"text": message["text"], "files": [*message["files"], path]},
            self.page.webcam: None,
        }

    def update_panel(self, session: Session, model: int, *choice: Any) -> Update:
        """Draw the panel for the values of its controls."""
        page = self.page
        view = session.views[model] if model < len(session.views) else None
        controls = dict(zip(Choice._fields, page.controls[1:], strict=True))
        if view is None:
            hidden = {control: gr.update(visible=False) for control in controls.values()}
            empty = {page.rois: None, page.attention: None, page.rois_text: "", page.attention_text: ""}
            return empty | hidden
        tokens = view.attention.shape[-1]
        chosen = Choice(*choice)
        # another model may have fewer steps or tokens
        chosen = chosen._replace(
            image=min(chosen.image, len(view.pixels)),
            step=min(chosen.step, len(view.steps)),
            token=min(chosen.token, tokens),
            answer_token=min(chosen.answer_token, len(view.answer_tokens)),
        )
        drawn = {
            page.rois: panel.draw_rois(view, chosen),
            page.rois_text: panel.describe_rois(view, chosen),
            page.attention: panel.draw_attention(view, chosen),
            page.attention_text: panel.describe_attention(view, chosen),
        }
        names = [("the whole answer", ALL), *((f"{k}: {text!r}", k) for k, text in enumerate(view.answer_tokens, 1))]
        ranges = {
            "image": _slider(len(view.pixels), chosen.image),
            "step": _slider(len(view.steps), chosen.step),
            "token": gr.Slider(maximum=tokens, value=chosen.token, visible=True),
            "answer_token": gr.Dropdown(choices=names, value=chosen.answer_token, visible=True),
            "colour_by": gr.update(value=chosen.colour_by, visible=True),
            "points": gr.update(value=chosen.points, visible=True),
        }
        return drawn | {controls[name]: control for name, control in ranges.items()}

    def choose_token(self, place: gr.SelectData, session: Session, model: int, *choice: Any) -> Update:
        """Choose the token nearest to a click; gradio passes `place` first."""
        view = session.views[model] if model < len(session.views) else None
        if view is None:
            return self.update_panel(session, model, *choice)
        chosen = Choice(*choice)
        token = panel.token_at(view, chosen, *place.index)
        return self.update_panel(session, model, *chosen._replace(token=token))

    def _receive(self, path: str) -> SentImage:
        name, data = Path(path).name, Path(path).read_bytes()
        shown = open_upload(data, name, self.max_megapixels)
        shown.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
        return SentImage(data, name, save_pil_to_cache(shown, cache_dir=get_upload_folder(), format="png"))

    def _chats(self, session: Session) -> Update:
        return {chat: session.history(k) for k, chat in enumerate(self.page.chats)}

    def _answer(self, session: Session, decoding: Decoding, max_new_tokens: int) -> Iterator[Update]:
        """Yield the chats as they grow, then the panel.

        Raises:
            UserError: the conversation is too long; the session has not changed.
        """
        generations: list[Generation] = []
        growing = answer(self.models, session, decoding, max_new_tokens)
        yield self._chats(session)
        for grown in growing:
            generations = grown
            yield self._chats(session) | {self.page.numbers: ""}  # remove the numbers of the last answer
        drawn: Update = {}
        if generations and session.turns:
            tokens = [None if view is None else view.attention.shape[-1] for view in session.views]
            last_step = max((len(view.steps) for view in session.views if view is not None), default=1)
            choice = Choice(len(session.images()) or 1, last_step, ALL, "token", True, ALL)
            drawn = self.update_panel(session, 0, *choice) | {
                self.page.numbers: panel.numbers(self.models, generations, tokens),
                self.page.controls[0]: 0,
            }
        yield self._chats(session) | drawn


def _warn(error: UserError) -> None:
    gr.Warning(html.escape(str(error)))  # gradio renders HTML; file names come from the visitor


def _slider(most: int, value: int) -> gr.Slider:
    """Create a slider from 1, hidden if there is only one value."""
    return gr.Slider(maximum=max(2, most), value=value, visible=most > 1)


def connect(events: Events, concurrency: int) -> None:
    """Connect the handlers to the page, inside the current `gr.Blocks`.

    Args:
        events: the handlers.
        concurrency: questions answered at the same time; others wait in the queue.
    """
    page = events.page
    panel_parts = [page.rois, page.rois_text, page.attention, page.attention_text, *page.controls]
    everything = [page.question, *page.chats, page.numbers, *panel_parts]
    answering: dict[str, Any] = {
        "concurrency_limit": concurrency,
        "concurrency_id": "models",
        "show_progress": "minimal",
    }
    page.question.submit(
        events.ask, [page.question, page.session, *page.settings], everything, api_name="ask", **answering
    )
    page.retry.click(events.retry, [page.session, *page.settings], everything, api_name="retry", **answering)
    page.stop.click(events.stop, [page.session], None, queue=False, api_name="stop")
    page.clear.click(events.clear, [page.session], everything, queue=False, api_name="clear")
    for chat in page.chats:  # each has its own button
        chat.clear(events.clear, [page.session], everything, queue=False, api_visibility="private")
    page.webcam.input(
        events.attach_webcam, [page.webcam, page.question], [page.question, page.webcam], api_visibility="private"
    )
    drawing: dict[str, Any] = {
        "trigger_mode": "always_last",
        "show_progress": "hidden",
        "concurrency_id": "drawing",
        "concurrency_limit": 2,
        "api_visibility": "private",
    }
    inputs = [page.session, *page.controls]
    for control in page.controls:
        control.input(events.update_panel, inputs, panel_parts, **drawing)
    page.rois.select(events.choose_token, inputs, panel_parts, **drawing)
