"""A conversation of several turns about images. The prompt of each answer is the whole conversation."""

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
    """The turns and images of a conversation.

    Args:
        model, processor: returned by `load_vlm`.
        decoding: greedy or sampled; None: greedy. Beam search cannot be streamed.
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
        """Attach an image to the next question. Several images may be attached."""
        self._waiting.append(image)

    def clear(self) -> None:
        """Forget all turns and images."""
        self.messages, self.images, self._waiting = [], [], []

    def ask(self, question: str, max_new_tokens: int = 256) -> Generator[str]:
        """Yield the answer in pieces.

        Question and answer become part of the conversation when the answer ends or the iterator is closed. In the
        latter case the answer is kept up to that point; a question without any answer is forgotten.

        Args:
            question: plain text.
            max_new_tokens: maximum length of the answer.
        """
        check_question(question)
        if max_new_tokens < 1:
            raise UserError(f"--max_new_tokens must be 1 or more, got {max_new_tokens}.")
        messages = [*self.messages, user_message(question, len(self._waiting))]
        images = [*self.images, *self._waiting]
        inputs = encode_messages(self.processor, messages, images)
        check_length(self.model, inputs["input_ids"].shape[1], max_new_tokens)
        pieces: list[str] = []
        try:
            with closing(
                stream_inputs(self.model, self.processor, inputs, max_new_tokens, self.decoding.settings)
            ) as generated:
                for piece in generated:
                    pieces.append(piece)
                    yield piece
        finally:
            if text := "".join(pieces).strip():
                self.messages = [*messages, {"role": "assistant", "content": text}]
                self.images, self._waiting = images, []
