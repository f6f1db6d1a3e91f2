"""One model that answers requests one after another, in a thread of its own.

Requests are not answered in batches: those of different users differ in prompt, images, length, sampling and stop
strings, so a batch would have to admit and release rows between tokens, with a cache for each. vLLM does that.
"""

import asyncio
import copy
from collections.abc import AsyncGenerator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event
from typing import Any

from PIL import Image
from transformers import BatchFeature

from sparse_vlm.errors import UserError
from sparse_vlm.vlm.chat import check_inputs, check_question, encode_messages
from sparse_vlm.vlm.language.positions import most_positions
from sparse_vlm.vlm.serving.generation import Answer, Piece, Settings, generate
from sparse_vlm.vlm.serving.refusals import RefusedError
from sparse_vlm.vlm.views import View, tokens_per_image


class Engine:
    """A model with two threads: one prepares requests, so that invalid ones are refused at once; one generates.

    Args:
        model, processor: returned by `load_vlm`.
        max_new_tokens: limit per answer where the request sets none.
        max_requests: limit on requests at once, including the one that is being answered.
    """

    def __init__(self, model: Any, processor: Any, max_new_tokens: int = 1024, max_requests: int = 64) -> None:
        for name, value in (("--max_new_tokens", max_new_tokens), ("--max_requests", max_requests)):
            if value < 1:
                raise UserError(f"{name} must be 1 or more, got {value}.")
        self.model, self.processor = model, processor
        self.max_new_tokens, self.max_requests = max_new_tokens, max_requests
        self._own_processor = copy.deepcopy(processor)  # tokenizers are not thread-safe
        self._preparing = ThreadPoolExecutor(1, "prepare")
        self._generating = ThreadPoolExecutor(1, "generate")
        self._stops: set[Event] = set()
        self._requests = 0
        self._longest_token = max(map(len, processor.tokenizer.get_vocab()))

    @contextmanager
    def place(self) -> Iterator[None]:
        """Count a request, from before it is read until its answer ends.

        Raises:
            RefusedError: too many requests are here already.
        """
        if self._requests >= self.max_requests:
            raise RefusedError(
                503,
                f"This server answers or queues {self.max_requests} requests already. Send this one again later.",
                headers={"Retry-After": "1"},
            )
        self._requests += 1
        try:
            yield
        finally:
            self._requests -= 1

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
        check_question(_text(messages[-1:]))
        most = most_positions(self.model.config.get_text_config())
        characters = len(_text(messages))
        if most is not None and characters > most * self._longest_token:  # would take long to tokenize
            raise UserError(
                f"The conversation has {characters} characters, more than the {most} tokens that the model takes can "
                "hold. Begin a new conversation."
            )
        counts = tokens_per_image(visual_tokens, len(images), self._own_processor.num_image_tokens)
        self.model.model.check_views([View(0, tokens) for tokens in counts])  # before long prompts are tokenized
        inputs = encode_messages(self._own_processor, messages, images, visual_tokens)
        inputs = inputs.to(dtype=self.model.dtype)
        prompt = inputs["input_ids"].shape[1]
        check_inputs(self.model, inputs, length or 1)
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


def _text(messages: Sequence[dict[str, Any]]) -> str:
    return "".join(part.get("text", "") for message in messages for part in message["content"])
