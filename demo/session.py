"""The conversation of one visitor; Gradio keeps one session for each browser tab."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from PIL import Image
from torch import Tensor

from demo.markup import as_answer, as_typed
from sparse_vlm.encoder.runtime.sampling_steps import SamplingStep
from sparse_vlm.errors import UserError
from sparse_vlm.image_files import decode_image
from sparse_vlm.vlm.chat import check_question, user_message
from sparse_vlm.vlm.views import Box, View


class SentImage(NamedTuple):
    """An image of a question, kept as the file that was sent: decoded, it may take a hundred times the memory.

    Attributes:
        data: the content of the file.
        name: the file's name, for messages.
        file: a small copy that any browser can show.
    """

    data: bytes
    name: str
    file: str

    def decode(self) -> Image.Image:
        """Decode the image as RGB."""
        return decode_image(self.data, self.name)


class Region(NamedTuple):
    """A box of the last image that a question is about.

    Attributes:
        box: in the coordinates of the whole image.
        file: a copy of the image with the box.
    """

    box: Box
    file: str


@dataclass
class Drawing:
    """The visitor's box on the last image, while it is being drawn for the next question.

    Attributes:
        image: the image.
        shown: a copy of it of the page's size, on which the visitor clicks.
        corner: the first corner in pixels of the copy.
        box: the finished box, in the coordinates of the whole image.
    """

    image: SentImage
    shown: Image.Image
    corner: tuple[float, float] | None = None
    box: Box | None = None


class Regions(NamedTuple):
    """What each model looks at more closely.

    Attributes:
        each: one for each model; None if it gets the question without a region.
        notes: for each model, a sentence to show with its answer; may be empty.
    """

    each: list[Region | None]
    notes: list[str]


@dataclass
class Turn:
    """A question and the answer of each model so far.

    Attributes:
        question: as typed.
        images: those sent with it.
        drawn: the box that the visitor drew for the question.
        attended: where the models looked again; None: they did not.
        answers: of each model that has begun to answer.
        earlier: the answers before the models looked again.
    """

    question: str
    images: list[SentImage]
    drawn: Regions | None = None
    attended: Regions | None = None
    answers: list[str] = field(default_factory=list)
    earlier: list[str] = field(default_factory=list)

    def boxes(self, model: int) -> list[Box]:
        """Return the boxes of all regions of a model."""
        regions = [given.each[model] for given in (self.drawn, self.attended) if given is not None]
        return [region.box for region in regions if region is not None]


class SeenImage(NamedTuple):
    """An image of a conversation as a model saw it for its last answer.

    Attributes:
        pixels: float32[H, W, 3] in [0, 1].
        views: the image itself, then its regions, whose boxes are in the coordinates of `pixels`.
        steps: the sampling steps with the n tokens of all views, a batch of 1; a dense tower has one step, whose RoIs
            are its patches.
        attention: float32[answer tokens, n], see `demo.attention.visual_attention`. Sampling steps and attention leave
            out CLS, which has no RoI.
    """

    pixels: Tensor
    views: list[View]
    steps: list[SamplingStep]
    attention: Tensor

    @property
    def boxes(self) -> list[Box]:
        """The boxes of the regions."""
        return [view.box for view in self.views[1:]]

    @property
    def region_tokens(self) -> int:
        """The number of tokens of the regions among the n, which come last."""
        tokens = [view.tokens for view in self.views]
        without_roi = (sum(tokens) - self.attention.shape[1]) // len(tokens)  # CLS, if the model keeps it
        return sum(tokens[1:]) - without_roi * len(tokens[1:])


class Seen(NamedTuple):
    """What one model saw for its last answer: the images of the conversation, and the answer's tokens as text."""

    images: list[SeenImage]
    answer_tokens: list[str]


@dataclass
class Session:
    """A conversation with one or two models.

    Attributes:
        turns: the turns so far; the last one may be unfinished.
        seen: one for each model's last answer, None if there is nothing to show.
        drawing: a box for the next question.
        stopping: the visitor has pressed Stop.
    """

    turns: list[Turn] = field(default_factory=list)
    seen: list[Seen | None] = field(default_factory=list)
    drawing: Drawing | None = None
    stopping: bool = False

    def begin(self, question: str, images: Sequence[SentImage], regions: Regions | None = None) -> None:
        """Add a question; this finishes the drawing.

        Raises:
            UserError: the question is empty.
        """
        check_question(question)
        self.turns.append(Turn(question, list(images), regions))
        self.drawing = None

    def check_retry(self) -> None:
        """Raise UserError if there is no question to answer again."""
        if not self.turns:
            raise UserError("There is nothing to try again: ask first.")

    def clear(self) -> None:
        """Delete the conversation and stop the current answer."""
        self.turns, self.seen, self.drawing, self.stopping = [], [], None, True

    def seen_by(self, model: int) -> Seen | None:
        """Return what a model saw for its last answer."""
        return self.seen[model] if model < len(self.seen) else None

    def images(self) -> list[SentImage]:
        """Return all images in the order in which they were sent."""
        return [image for turn in self.turns for image in turn.images]

    def messages(self, model: int) -> list[dict[str, Any]]:
        """Return the conversation with a model up to the last question, for a chat template."""
        messages = []
        for turn in self.turns:
            messages.append(user_message(turn.question, len(turn.images), turn.boxes(model)))
            if turn is not self.turns[-1]:
                text = turn.answers[model] if model < len(turn.answers) else ""  # stopped before this model answered
                messages.append({"role": "assistant", "content": [{"type": "text", "text": text}]})
        return messages

    def history(self, model: int) -> list[dict[str, Any]]:
        """Return the conversation with a model for Gradio's Chatbot."""
        shown: list[dict[str, Any]] = []
        for turn in self.turns:
            files = [{"path": image.file, "alt_text": image.name} for image in turn.images]
            if boxed := _boxed(turn.drawn, model):
                files = [*files[:-1], *boxed]
            shown.append({"role": "user", "content": [*files, as_typed(turn.question)]})
            if model < len(turn.earlier):
                shown.append(_shown_answer(turn.earlier[model], turn.drawn, model))
            if model < len(turn.answers):
                shown.append(_shown_answer(turn.answers[model], turn.attended or turn.drawn, model))
                if boxed := _boxed(turn.attended, model):
                    shown[-1]["content"][1:1] = boxed  # between note and answer
        return shown


def _boxed(regions: Regions | None, model: int) -> list[dict[str, str]]:
    """Return the image with a model's box for the chat, in a list; empty without a box."""
    region = None if regions is None else regions.each[model]
    return [] if region is None else [{"path": region.file, "alt_text": "the image with the box"}]


def _shown_answer(text: str, regions: Regions | None, model: int) -> dict[str, Any]:
    """Return an answer for the chat, after the note on what the model looked at."""
    note = "" if regions is None else regions.notes[model]
    return {"role": "assistant", "content": [f"*{note}*", as_answer(text)] if note else [as_answer(text)]}
