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


@dataclass
class Turn:
    """A question and the answer of each model so far."""

    question: str
    images: list[SentImage]
    answers: list[str] = field(default_factory=list)


class View(NamedTuple):
    """RoIs and attention of one model for its last answer.

    Attributes:
        pixels: float32[H, W, 3] in [0, 1] for each image of the conversation, as the vision tower saw it.
        steps: the sampling steps on these images; a dense tower has one, whose RoIs are its patches.
        attention: float32[answer tokens, images, n], see `demo.attention.visual_attention`.
        answer_tokens: the answer's tokens as text.
    """

    pixels: list[Tensor]
    steps: list[SamplingStep]
    attention: Tensor
    answer_tokens: list[str]


@dataclass
class Session:
    """A conversation with one or two models.

    Attributes:
        turns: the turns so far; the last one may be unfinished.
        views: one for each model's last answer, None if there is nothing to show.
        stopping: the visitor has pressed Stop.
    """

    turns: list[Turn] = field(default_factory=list)
    views: list[View | None] = field(default_factory=list)
    stopping: bool = False

    def begin(self, question: str, images: Sequence[SentImage]) -> None:
        """Add a question.

        Raises:
            UserError: the question is empty.
        """
        check_question(question)
        self.turns.append(Turn(question, list(images)))

    def check_retry(self) -> None:
        """Raise UserError if there is no question to answer again."""
        if not self.turns:
            raise UserError("There is nothing to try again: ask first.")

    def clear(self) -> None:
        """Delete the conversation and stop the current answer."""
        self.turns, self.views, self.stopping = [], [], True

    def images(self) -> list[SentImage]:
        """Return all images in the order in which they were sent."""
        return [image for turn in self.turns for image in turn.images]

    def messages(self, model: int) -> list[dict[str, Any]]:
        """Return the conversation with a model up to the last question, for a chat template."""
        messages = []
        for turn in self.turns:
            messages.append(user_message(turn.question, len(turn.images)))
            if turn is not self.turns[-1]:
                text = turn.answers[model] if model < len(turn.answers) else ""  # stopped before this model answered
                messages.append({"role": "assistant", "content": [{"type": "text", "text": text}]})
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
