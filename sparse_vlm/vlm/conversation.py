"""A conversation of several turns about pictures that come and go; the whole of it is the prompt of each answer."""

from collections.abc import Generator
from contextlib import closing
from typing import Any

from PIL import Image

from sparse_vlm.errors import UserError
from sparse_vlm.vlm.chat import check_length, check_question, encode_messages, stream_inputs, user_message
from sparse_vlm.vlm.decoding import Decoding
from sparse_vlm.vlm.modeling import SparseVLMForConditionalGeneration
from sparse_vlm.vlm.processing import SparseVLMProcessor


class Conversation:
    """Turns and pictures so far.

    Args:
        model, processor: of `load_vlm`.
        decoding: how the next token is chosen; None: greedily. Beam search has no pieces, so it is not for answers in
            pieces.
    """

    def __init__(
        self,
        model: SparseVLMForConditionalGeneration,
        processor: SparseVLMProcessor,
        decoding: Decoding | None = None,
    ) -> None:
        self.model, self.processor = model, processor
        self.decoding = decoding or Decoding()
        self.messages: list[dict[str, Any]] = []
        self.images: list[Image.Image] = []
        self._waiting: list[Image.Image] = []

    def show(self, image: Image.Image) -> None:
        """The next question is about this picture (and others shown before it since the last question)."""
        self._waiting.append(image)

    def clear(self) -> None:
        """Forgets all turns and pictures."""
        self.messages, self.images, self._waiting = [], [], []

    def ask(self, question: str, max_new_tokens: int = 256) -> Generator[str]:
        """The answer in pieces. Question and answer become part of the conversation when it ends, or when the
        iterator is closed, with what was said up to there; a question that got no word is forgotten.

        Args:
            question: plain text.
            max_new_tokens: where an answer that does not end is cut.

        Raises:
            UserError: see `check_question`; `max_new_tokens` is no length, or more than the model has room for.
        """
        check_question(question)
        if max_new_tokens < 1:
            raise UserError(
                f"An answer has at least one token: --max_new_tokens must be 1 or more, got {max_new_tokens}."
            )
        messages = [*self.messages, user_message(question, len(self._waiting))]
        images = [*self.images, *self._waiting]
        inputs = encode_messages(self.processor, messages, images)
        check_length(self.model, inputs["input_ids"].shape[1], max_new_tokens)
        said: list[str] = []
        try:
            with closing(
                stream_inputs(self.model, self.processor, inputs, max_new_tokens, self.decoding.settings)
            ) as pieces:
                for piece in pieces:
                    said.append(piece)
                    yield piece
        finally:
            if text := "".join(said).strip():
                self.messages = [*messages, {"role": "assistant", "content": text}]
                self.images, self._waiting = images, []
