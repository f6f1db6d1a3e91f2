"""What happens when the visitor does something. Handlers change the visitor's session and say what the page shows."""

import html
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.processing_utils import save_pil_to_cache
from gradio.utils import get_upload_folder

from demo import panel
from demo.interface import Page
from demo.models import OpenModel
from demo.panel import ALL, Choice
from demo.replies import answer
from demo.session import SentImage, Session
from demo.speaking import Reply, Sampling
from demo.uploads import open_upload
from sparse_vlm.errors import UserError

Update = dict[Any, Any]  # component of the page -> its new value
SHOWN_SIDE = 768  # pixels of an image's copy in the chat


class Events:
    """The handlers of a page.

    Args:
        page: what they write to.
        models: that answer.
        max_megapixels: of an uploaded image.
        max_images: of a question.
    """

    def __init__(self, page: Page, models: Sequence[OpenModel], max_megapixels: float, max_images: int) -> None:
        self.page, self.models = page, models
        self.max_megapixels, self.max_images = max_megapixels, max_images

    def ask(
        self, message: dict[str, Any], session: Session, temperature: float, top_p: float, most: int
    ) -> Iterator[Update]:
        """Take a question and stream the answers.

        A bad image is named, and text and good images stay. So does a question that cannot be answered.
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
            session.begin(message["text"], images)
        except UserError as error:
            _warn(error)
            yield {self.page.question: gr.skip()}
            return
        yield {self.page.question: {"text": "", "files": []}}
        try:
            yield from self._answer(session, Sampling(temperature, top_p, int(most)))
        except UserError as error:
            session.turns.pop()
            _warn(error)
            yield self._chats(session) | {self.page.question: message}

    def retry(self, session: Session, temperature: float, top_p: float, most: int) -> Iterator[Update]:
        """Answer the last question again; where that is refused, the answers it had stay."""
        try:
            session.check_retry()
            yield from self._answer(session, Sampling(temperature, top_p, int(most)))
        except UserError as error:
            _warn(error)
            yield self._chats(session)

    def stop(self, session: Session) -> None:
        """Ends the answer that is on its way; what it has said stays."""
        session.stopping = True

    def clear(self, session: Session) -> Update:
        """Forgets the conversation."""
        session.clear()
        page = self.page
        return self._chats(session) | self.show(session, 0) | {page.numbers: ""}  # not what is being typed

    def snap(self, path: str | None, message: dict[str, Any]) -> Update:
        """Put the webcam's image beside the question."""
        if path is None:
            return {self.page.question: gr.skip()}
        return {
            self.page.question: {"text": message["text"], "files": [*message["files"], path]},
            self.page.webcam: None,
        }

    def show(self, session: Session, model: int, *choice: Any) -> Update:
        """Draws what the controls ask for."""
        page = self.page
        view = session.views[model] if model < len(session.views) else None
        controls = dict(zip(Choice._fields, page.controls[1:], strict=True))
        if view is None:
            hidden = {control: gr.update(visible=False) for control in controls.values()}
            return {page.look: None, page.heat: None, page.look_text: "", page.heat_text: ""} | hidden
        chosen = Choice(*choice)
        # another model may have fewer steps, tokens or words
        chosen = chosen._replace(
            image=min(chosen.image, len(view.pixels)),
            step=min(chosen.step, len(view.glances)),
            token=min(chosen.token, view.attention.shape[-1]),
            word=min(chosen.word, len(view.words)),
        )
        drawn = {
            page.look: panel.draw_look(view, chosen),
            page.look_text: panel.describe_look(view, chosen),
            page.heat: panel.draw_attention(view, chosen),
            page.heat_text: panel.describe_attention(view, chosen),
        }
        words = [("the whole answer", ALL), *((f"{k}: {word!r}", k) for k, word in enumerate(view.words, 1))]
        ranges = {
            "image": _range(len(view.pixels), chosen.image),
            "step": _range(len(view.glances), chosen.step),
            "token": gr.Slider(maximum=view.attention.shape[-1], value=chosen.token, visible=True),
            "word": gr.Dropdown(choices=words, value=chosen.word, visible=True),
            "colour_by": gr.update(value=chosen.colour_by, visible=True),
            "points": gr.update(value=chosen.points, visible=True),
        }
        return drawn | {controls[name]: control for name, control in ranges.items()}

    def click(self, place: gr.SelectData, session: Session, model: int, *choice: Any) -> Update:
        """Chooses the token nearest to the click; `place` is gradio's to give, hence first."""
        view = session.views[model] if model < len(session.views) else None
        if view is None:
            return self.show(session, model, *choice)
        chosen = Choice(*choice)
        token = panel.token_at(view, chosen, *place.index)
        return self.show(session, model, *chosen._replace(token=token))

    def _receive(self, path: str) -> SentImage:
        name, data = Path(path).name, Path(path).read_bytes()
        shown = open_upload(data, name, self.max_megapixels)
        shown.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
        return SentImage(data, name, save_pil_to_cache(shown, cache_dir=get_upload_folder(), format="png"))

    def _chats(self, session: Session) -> Update:
        return {chat: session.history(k) for k, chat in enumerate(self.page.chats)}

    def _answer(self, session: Session, sampling: Sampling) -> Iterator[Update]:
        """Yield the chats as they grow, then the panel.

        Raises:
            UserError: the conversation is too long; nothing of it has changed.
        """
        replies: list[Reply] = []
        growing = answer(self.models, session, sampling)
        yield self._chats(session)
        for grown in growing:
            replies = grown
            yield self._chats(session) | {self.page.numbers: ""}  # those of the last answer
        drawn: Update = {}
        if replies and session.turns:
            tokens = [None if view is None else view.attention.shape[-1] for view in session.views]
            last_step = max((len(view.glances) for view in session.views if view is not None), default=1)
            choice = Choice(len(session.images()) or 1, last_step, ALL, "token", True, ALL)
            drawn = self.show(session, 0, *choice) | {
                self.page.numbers: panel.numbers(self.models, replies, tokens),
                self.page.controls[0]: 0,
            }
        yield self._chats(session) | drawn


def _warn(error: UserError) -> None:
    gr.Warning(html.escape(str(error)))  # shown as HTML, and names in it are a stranger's


def _range(most: int, value: int) -> gr.Slider:
    """A slider from 1, out of sight where there is nothing to choose."""
    return gr.Slider(maximum=max(2, most), value=value, visible=most > 1)


def connect(events: Events, concurrency: int) -> None:
    """Joins the handlers to the page, inside the current `gr.Blocks`.

    Args:
        events: the handlers.
        concurrency: questions that are answered at the same time; others wait in the queue.
    """
    page = events.page
    panel_parts = [page.look, page.look_text, page.heat, page.heat_text, *page.controls]
    everything = [page.question, *page.chats, page.numbers, *panel_parts]
    speaking: dict[str, Any] = {
        "concurrency_limit": concurrency,
        "concurrency_id": "models",
        "show_progress": "minimal",
    }
    page.question.submit(
        events.ask, [page.question, page.session, *page.settings], everything, api_name="ask", **speaking
    )
    page.retry.click(events.retry, [page.session, *page.settings], everything, api_name="retry", **speaking)
    page.stop.click(events.stop, [page.session], None, queue=False, api_name="stop")
    page.clear.click(events.clear, [page.session], everything, queue=False, api_name="clear")
    for chat in page.chats:  # each has a button of its own
        chat.clear(events.clear, [page.session], everything, queue=False, api_visibility="private")
    page.webcam.input(events.snap, [page.webcam, page.question], [page.question, page.webcam], api_visibility="private")
    drawing: dict[str, Any] = {
        "trigger_mode": "always_last",
        "show_progress": "hidden",
        "concurrency_id": "drawing",
        "concurrency_limit": 2,
        "api_visibility": "private",
    }
    seen = [page.session, *page.controls]
    for control in page.controls:
        control.input(events.show, seen, panel_parts, **drawing)
    page.look.select(events.click, seen, panel_parts, **drawing)
