"""One model that answers requests one after another, in a thread of its own."""

import asyncio
import copy
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

from PIL import Image
from transformers import BatchFeature

from sparse_vlm.errors import UserError
from sparse_vlm.vlm.chat import check_inputs, check_question, encode_messages
from sparse_vlm.vlm.language.positions import most_positions
from sparse_vlm.vlm.serving.generation import Answer, Piece, Settings, generate
from sparse_vlm.vlm.views import View, tokens_per_image


class Engine:
    """A model with two threads: one prepares requests, so that invalid ones are refused at once; one generates.

    Args:
        model, processor: returned by `load_vlm`.
        max_new_tokens: limit per answer where the request sets none.
    """

    def __init__(self, model: Any, processor: Any, max_new_tokens: int = 1024) -> None:
        if max_new_tokens < 1:
            raise UserError(f"--max_new_tokens must be 1 or more, got {max_new_tokens}.")
        self.model, self.processor, self.max_new_tokens = model, processor, max_new_tokens
        self._own_processor = copy.deepcopy(processor)  # tokenizers are not thread-safe
        self._preparing = ThreadPoolExecutor(1, "prepare")
        self._generating = ThreadPoolExecutor(1, "generate")
        self._stops: set[Event] = set()

    async def prepare(
        self,
        messages: Sequence[dict[str, Any]],
        images: Sequence[Image.Image],
        length: int | None,
        visual_tokens: int | Sequence[int] | None = None,
    ) -> tuple[BatchFeature, int]:
        """Encode a conversation. Returns the model's inputs and the maximum length of the answer in tokens.

        Args:
            messages: see `encode_messages`.
            images: the images of all turns.
            length: the maximum that the request sets, if any.
            visual_tokens: see `encode_messages`.

        Raises:
            UserError: the last question is empty, the chat template refuses the conversation, it is too long, or the
                model cannot have these visual tokens and regions.
        """
        return await asyncio.get_running_loop().run_in_executor(
            self._preparing, self._prepare, messages, images, length, visual_tokens
        )

    def _prepare(
        self,
        messages: Sequence[dict[str, Any]],
        images: Sequence[Image.Image],
        length: int | None,
        visual_tokens: int | Sequence[int] | None,
    ) -> tuple[BatchFeature, int]:
        check_question("".join(part.get("text", "") for part in messages[-1]["content"]))
        counts = tokens_per_image(visual_tokens, len(images), self._own_processor.num_image_tokens)
        self.model.model.check_views([View(0, tokens) for tokens in counts])  # before long prompts are tokenized
        inputs = encode_messages(self._own_processor, messages, images, visual_tokens)
        inputs = inputs.to(dtype=self.model.dtype)
        prompt = inputs["input_ids"].shape[1]
        check_inputs(self.model, inputs, length or 1)
        most = most_positions(self.model.config.get_text_config())
        room = self.max_new_tokens if most is None else most - prompt
        return inputs, length or min(self.max_new_tokens, room)

    async def answer(self, inputs: BatchFeature, settings: Settings) -> AsyncGenerator[Piece | Answer]:
        """Yield the pieces of an answer as they are generated, then the answer. Closing the iterator stops it."""
        loop, stop = asyncio.get_running_loop(), Event()
        pieces: asyncio.Queue[Piece | None] = asyncio.Queue()

        def put(piece: Piece | None) -> None:
            loop.call_soon_threadsafe(pieces.put_nowait, piece)

        def work() -> Answer | None:
            try:
                if stop.is_set():  # the client has disconnected already
                    return None
                return generate(self.model, self.processor.tokenizer, inputs, settings, put, stop)
            finally:
                put(None)

        self._stops.add(stop)
        try:
            future = loop.run_in_executor(self._generating, work)
            while (piece := await pieces.get()) is not None:
                yield piece
            answer = await future
            if answer is not None:
                yield answer
        finally:
            stop.set()
            self._stops.discard(stop)

    def close(self) -> None:
        """Stop running generations and end the threads."""
        for stop in list(self._stops):
            stop.set()
        self._preparing.shutdown(cancel_futures=True)
        self._generating.shutdown(cancel_futures=True)
