"""What one visitor has said, shown and got; Gradio keeps one for each browser tab."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from PIL import Image
from torch import Tensor

from demo.markup import as_answer, as_typed
from sparse_vlm.errors import UserError
from sparse_vlm.image_files import decode_image
from sparse_vlm.visualize import Glance
from sparse_vlm.vlm.chat import check_question, user_message


class SentImage(NamedTuple):
    """An image of a question, kept as it was sent: decoded, it may take a hundred times the memory.

    Attributes:
        data: the content of the file.
        name: its name, for messages.
        file: a small copy that any browser shows.
    """

    data: bytes
    name: str
    file: str

    def decode(self) -> Image.Image:
        """Return the image, RGB."""
        return decode_image(self.data, self.name)


@dataclass
class Turn:
    """A question and what each model says to it, as far as it has come."""

    question: str
    images: list[SentImage]
    answers: list[str] = field(default_factory=list)


class View(NamedTuple):
    """What one model looked at for its last answer.

    Attributes:
        pixels: float32[H, W, 3] in [0, 1] of each image so far, what its vision tower saw.
        glances: its sampling steps on them; of a dense tower one: its patches.
        attention: float32[words, images, n], see `demo.looking.visual_attention`.
        words: the answer's tokens as text.
    """

    pixels: list[Tensor]
    glances: list[Glance]
    attention: Tensor
    words: list[str]


@dataclass
class Session:
    """A conversation with one or two models.

    Attributes:
        turns: so far; the last one may be unfinished.
        views: of each model for the last answer, None where there is nothing to show.
        stopping: the visitor wants the answer to end here.
    """

    turns: list[Turn] = field(default_factory=list)
    views: list[View | None] = field(default_factory=list)
    stopping: bool = False

    def begin(self, question: str, images: Sequence[SentImage]) -> None:
        """Adds a question.

        Raises:
            UserError: it is empty.
        """
        check_question(question)
        self.turns.append(Turn(question, list(images)))

    def check_retry(self) -> None:
        """Raise UserError where nothing was asked that could be answered again."""
        if not self.turns:
            raise UserError("There is nothing to try again: ask first.")

    def clear(self) -> None:
        """Forgets everything; an answer on its way ends."""
        self.turns, self.views, self.stopping = [], [], True

    def images(self) -> list[SentImage]:
        """Return all images in the order in which they were sent."""
        return [image for turn in self.turns for image in turn.images]

    def messages(self, model: int) -> list[dict[str, Any]]:
        """The conversation with a model up to the last question, for a chat template."""
        messages = []
        for turn in self.turns:
            messages.append(user_message(turn.question, len(turn.images)))
            if turn is not self.turns[-1]:
                said = turn.answers[model] if model < len(turn.answers) else ""  # its answer broke off
                messages.append({"role": "assistant", "content": [{"type": "text", "text": said}]})
        return messages

    def history(self, model: int) -> list[dict[str, Any]]:
        """Return the conversation with a model for Gradio's Chatbot."""
        shown: list[dict[str, Any]] = []
        for turn in self.turns:
            files = [{"path": image.file, "alt_text": image.name} for image in turn.images]
            shown.append({"role": "user", "content": [*files, as_typed(turn.question)]})
            if model < len(turn.answers):
                shown.append({"role": "assistant", "content": as_answer(turn.answers[model])})
        return shown
