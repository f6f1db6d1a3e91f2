"""What one visitor has said, shown and got; Gradio keeps one for each browser tab."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from PIL import Image
from torch import Tensor

from sparse_vlm.errors import UserError
from sparse_vlm.visualize import Glance
from sparse_vlm.vlm.chat import check_question, user_message


class Picture(NamedTuple):
    """A picture of a question.

    Attributes:
        image: RGB.
        file: a copy that any browser shows.
    """

    image: Image.Image
    file: str


@dataclass
class Turn:
    """A question and what each model says to it, as far as it has come."""

    question: str
    pictures: list[Picture]
    answers: list[str] = field(default_factory=list)


class View(NamedTuple):
    """What one model looked at for its last answer.

    Attributes:
        pixels: float32[H, W, 3] in [0, 1] of each picture so far, what its vision tower saw.
        glances: its sampling steps on them; of a dense tower one: its patches.
        attention: float32[words, pictures, n], see `demo.attention`.
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

    def begin(self, question: str, pictures: Sequence[Picture]) -> None:
        """Adds a question.

        Raises:
            UserError: it is empty.
        """
        check_question(question)
        self.turns.append(Turn(question, list(pictures)))

    def retry(self) -> None:
        """Forgets the answers to the last question.

        Raises:
            UserError: nothing was asked.
        """
        if not self.turns:
            raise UserError("There is nothing to try again: ask first.")
        self.turns[-1].answers = []

    def clear(self) -> None:
        """Forgets everything; an answer on its way ends."""
        self.turns, self.views, self.stopping = [], [], True

    def pictures(self) -> list[Picture]:
        """All of them, in the order in which they were sent."""
        return [picture for turn in self.turns for picture in turn.pictures]

    def messages(self, model: int) -> list[dict[str, Any]]:
        """The conversation with a model up to the last question, for a chat template."""
        messages = []
        for turn in self.turns:
            messages.append(user_message(turn.question, len(turn.pictures)))
            if turn is not self.turns[-1]:
                said = turn.answers[model] if model < len(turn.answers) else ""  # its answer broke off
                messages.append({"role": "assistant", "content": [{"type": "text", "text": said}]})
        return messages

    def history(self, model: int) -> list[dict[str, Any]]:
        """The conversation with a model for Gradio's Chatbot."""
        shown: list[dict[str, Any]] = []
        for turn in self.turns:
            files = [{"path": picture.file, "alt_text": "picture"} for picture in turn.pictures]
            shown.append({"role": "user", "content": [*files, turn.question]})
            if model < len(turn.answers):
                shown.append({"role": "assistant", "content": turn.answers[model]})
        return shown
