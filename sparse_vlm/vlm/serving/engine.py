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
from sparse_vlm.vlm.chat import check_length, check_question, encode_messages
from sparse_vlm.vlm.serving.generation import Answer, Piece, Settings, generate


class Engine:
    """A model, and two threads: one prepares requests, so that a bad one is refused at once; one generates.

    Args:
        model, processor: of `load_vlm`.
        max_new_tokens: of answers whose request does not say.
    """

    def __init__(self, model: Any, processor: Any, max_new_tokens: int = 1024) -> None:
        if max_new_tokens < 1:
            raise UserError(f"--max_new_tokens must be 1 or more, got {max_new_tokens}.")
        self.model, self.processor, self.max_new_tokens = model, processor, max_new_tokens
        self._own_processor = copy.deepcopy(processor)  # tokenizers must not be used by two threads at once
        self._preparing = ThreadPoolExecutor(1, "prepare")
        self._generating = ThreadPoolExecutor(1, "generate")
        self._stops: set[Event] = set()

    async def prepare(
        self, messages: Sequence[dict[str, Any]], images: Sequence[Image.Image], length: int | None
    ) -> tuple[BatchFeature, int]:
        """A conversation as the model's inputs, and the most tokens that its answer may have.

        Args:
            messages: see `encode_messages`.
            images: of all turns.
            length: that the request asks for.

        Raises:
            UserError: the last question is empty, the template refuses the conversation, or it is too long.
        """
        return await asyncio.get_running_loop().run_in_executor(
            self._preparing, self._prepare, messages, images, length
        )

    def _prepare(
        self, messages: Sequence[dict[str, Any]], images: Sequence[Image.Image], length: int | None
    ) -> tuple[BatchFeature, int]:
        check_question("".join(part.get("text", "") for part in messages[-1]["content"]))
        inputs = encode_messages(self._own_processor, messages, images)
        inputs = inputs.to(dtype=self.model.dtype)
        prompt = inputs["input_ids"].shape[1]
        check_length(self.model, prompt, length or 1)
        longest: int | None = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        room = self.max_new_tokens if longest is None else longest - prompt
        return inputs, length or min(self.max_new_tokens, room)

    async def answer(self, inputs: BatchFeature, settings: Settings) -> AsyncGenerator[Piece | Answer]:
        """The pieces of an answer as they come, then the answer. Closing the iterator stops the generation."""
        loop, stop = asyncio.get_running_loop(), Event()
        pieces: asyncio.Queue[Piece | None] = asyncio.Queue()

        def put(piece: Piece | None) -> None:
            loop.call_soon_threadsafe(pieces.put_nowait, piece)

        def work() -> Answer | None:
            try:
                if stop.is_set():  # nobody waits any more
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
        """Stops what is being generated and ends the threads."""
        for stop in list(self._stops):
            stop.set()
        self._preparing.shutdown(cancel_futures=True)
        self._generating.shutdown(cancel_futures=True)
