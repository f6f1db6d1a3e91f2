"""Handlers of the page's events. They change the visitor's session and return the new content of the page."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import gradio as gr

from demo import panel
from demo.answers import answer
from demo.generation import Generation
from demo.interface import Page, warn
from demo.models import OpenModel
from demo.panel import ALL, Choice
from demo.regions import BoxEvents, attended_regions, drawn_regions
from demo.session import Session
from demo.uploads import receive
from sparse_vlm.errors import UserError
from sparse_vlm.vlm.decoding import Decoding

Update = dict[Any, Any]  # component of the page -> its new value


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
        self.boxes = BoxEvents(page, max_megapixels)
        self.max_megapixels, self.max_images = max_megapixels, max_images

    def ask(
        self,
        message: dict[str, Any],
        session: Session,
        temperature: float,
        top_p: float,
        max_new_tokens: int,
        *visual_tokens: int,
    ) -> Iterator[Update]:
        """Take a question and stream the answers.

        A warning names each image that cannot be opened; the text and the other images stay in the box. A refused
        question stays there as well, and so does a box drawn on the image.
        """
        images, good = [], []
        for path in message["files"]:
            try:
                images.append(receive(path, self.max_megapixels))
                good.append(path)
            except UserError as error:
                warn(error)
        if len(good) < len(message["files"]):
            yield {self.page.question: {"text": message["text"], "files": good}}
            return
        drawing = session.drawing
        try:
            if len(images) > self.max_images:
                raise UserError(f"{len(images)} images are too many for one question: send at most {self.max_images}.")
            decoding = Decoding(temperature, top_p)
            session.begin(message["text"], images, drawn_regions(self.models, session, images))
        except UserError as error:
            warn(error)
            yield {self.page.question: gr.skip()}
            return
        yield {self.page.question: {"text": "", "files": []}} | self.boxes.area(session)
        try:
            yield from self._answer(session, decoding, max_new_tokens, visual_tokens)
        except UserError as error:
            session.turns.pop()
            session.drawing = drawing
            warn(error)
            yield self._chats(session) | self.boxes.area(session) | {self.page.question: message}

    def retry(
        self, session: Session, temperature: float, top_p: float, max_new_tokens: int, *visual_tokens: int
    ) -> Iterator[Update]:
        """Answer the last question again; if this is refused, its previous answers stay."""
        try:
            session.check_retry()
            yield from self._answer(session, Decoding(temperature, top_p), max_new_tokens, visual_tokens)
        except UserError as error:
            warn(error)
            yield self._chats(session)

    def look_again(
        self, session: Session, temperature: float, top_p: float, max_new_tokens: int, *visual_tokens: int
    ) -> Iterator[Update]:
        """Answer the last question again with one more region, where the answer attended.

        The previous answer stays on the page, above the new one. If this is refused, the turn does not change.
        """
        try:
            session.check_retry()
            attended = attended_regions(self.models, session)
            turn = session.turns[-1]
            before = replace(turn)
            turn.attended, turn.earlier = attended, turn.answers
            try:
                yield from self._answer(session, Decoding(temperature, top_p), max_new_tokens, visual_tokens)
            except UserError:
                vars(turn).update(vars(before))
                raise
        except UserError as error:
            warn(error)
            yield self._chats(session)

    def stop(self, session: Session) -> None:
        """End the current answer; its text so far stays."""
        session.stopping = True

    def clear(self, session: Session) -> Update:
        """Delete the conversation; the text in the question box stays."""
        session.clear()
        page = self.page
        return self._chats(session) | self.boxes.area(session) | self.update_panel(session, 0) | {page.numbers: ""}

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
        seen = session.seen_by(model)
        controls = dict(zip(Choice._fields, page.controls[1:], strict=True))
        if seen is None:
            hidden = {control: gr.update(visible=False) for control in controls.values()}
            empty = {page.rois: None, page.attention: None, page.rois_text: "", page.attention_text: ""}
            return empty | hidden
        chosen = Choice(*choice)
        chosen = chosen._replace(image=min(chosen.image, len(seen.images)))
        image = seen.images[chosen.image - 1]
        tokens = image.attention.shape[1]
        # another model or image may have fewer steps or tokens
        chosen = chosen._replace(
            step=min(chosen.step, len(image.steps)),
            token=min(chosen.token, tokens),
            answer_token=min(chosen.answer_token, len(seen.answer_tokens)),
        )
        drawn = {
            page.rois: panel.draw_rois(seen, chosen),
            page.rois_text: panel.describe_rois(seen, chosen),
            page.attention: panel.draw_attention(seen, chosen),
            page.attention_text: panel.describe_attention(seen, chosen),
        }
        names = [("the whole answer", ALL), *((f"{k}: {text!r}", k) for k, text in enumerate(seen.answer_tokens, 1))]
        ranges = {
            "image": _slider(len(seen.images), chosen.image),
            "step": _slider(len(image.steps), chosen.step),
            "token": gr.Slider(maximum=tokens, value=chosen.token, visible=True),
            "answer_token": gr.Dropdown(choices=names, value=chosen.answer_token, visible=True),
            "colour_by": gr.update(value=chosen.colour_by, visible=True),
            "points": gr.update(value=chosen.points, visible=True),
        }
        return drawn | {controls[name]: control for name, control in ranges.items()}

    def choose_token(self, place: gr.SelectData, session: Session, model: int, *choice: Any) -> Update:
        """Choose the token nearest to a click; gradio passes `place` first."""
        seen = session.seen_by(model)
        if seen is None:
            return self.update_panel(session, model, *choice)
        chosen = Choice(*choice)
        token = panel.token_at(seen, chosen, *place.index)
        return self.update_panel(session, model, *chosen._replace(token=token))

    def _chats(self, session: Session) -> Update:
        return {chat: session.history(k) for k, chat in enumerate(self.page.chats)}

    def _answer(
        self, session: Session, decoding: Decoding, max_new_tokens: float, visual_tokens: Sequence[float]
    ) -> Iterator[Update]:
        """Yield the chats as they grow, then the panel.

        Raises:
            UserError: the conversation is too long or does not fit a model; the session has not changed.
        """
        generations: list[Generation] = []
        chosen = map(int, visual_tokens)  # of the models that are not fixed
        counts = [None if opened.fixed else next(chosen, None) for opened in self.models]
        growing = answer(self.models, session, decoding, int(max_new_tokens), counts)
        yield self._chats(session)
        for grown in growing:
            generations = grown
            yield self._chats(session) | {self.page.numbers: ""}  # remove the numbers of the last answer
        drawn: Update = {}
        if generations and session.turns:
            tokens = [panel.count_tokens(seen) for seen in session.seen]
            images = [image for seen in session.seen if seen is not None for image in seen.images]
            last_step = max((len(image.steps) for image in images), default=1)
            choice = Choice(len(session.images()) or 1, last_step, ALL, "token", True, ALL)
            drawn = self.update_panel(session, 0, *choice) | {
                self.page.numbers: panel.numbers(self.models, generations, tokens),
                self.page.controls[0]: 0,
            }
        yield self._chats(session) | drawn


def _slider(most: int, value: int) -> gr.Slider:
    """Create a slider from 1, hidden if there is only one value."""
    return gr.Slider(maximum=max(2, most), value=value, visible=most > 1)


def connect(events: Events, concurrency: int) -> None:
    """Connect the handlers to the page, inside the current `gr.Blocks`.

    Args:
        events: the handlers.
        concurrency: questions answered at the same time; others wait in the queue.
    """
    page, boxes = events.page, events.boxes
    panel_parts = [page.rois, page.rois_text, page.attention, page.attention_text, *page.controls]
    everything = [page.question, *page.chats, page.numbers, *panel_parts, *boxes.parts]
    answering: dict[str, Any] = {
        "concurrency_limit": concurrency,
        "concurrency_id": "models",
        "show_progress": "minimal",
    }
    page.question.submit(
        events.ask, [page.question, page.session, *page.settings], everything, api_name="ask", **answering
    )
    page.retry.click(events.retry, [page.session, *page.settings], everything, api_name="retry", **answering)
    page.look_again.click(
        events.look_again, [page.session, *page.settings], everything, api_name="look_again", **answering
    )
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
    in_order = drawing | {"trigger_mode": "multiple"}  # each click counts
    page.draw.click(boxes.draw, [page.question, page.session], boxes.parts, **in_order)
    page.box.select(boxes.choose_corner, [page.session], boxes.parts, **in_order)
    page.remove_box.click(boxes.remove, [page.session], boxes.parts, **in_order)
