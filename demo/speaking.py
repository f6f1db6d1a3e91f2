"""An answer as it is generated, with the time of its parts."""

import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from PIL import Image
from transformers import BatchFeature, TextIteratorStreamer

from demo.models import OpenModel
from sparse_vlm.devices import synchronize
from sparse_vlm.vlm.chat import GREEDY, check_length, encode_messages, stream_inputs


@dataclass(frozen=True)
class Sampling:
    """How words are chosen. Temperature 0 is greedy: the same question gets the same answer."""

    temperature: float
    top_p: float
    max_new_tokens: int

    def settings(self) -> dict[str, Any]:
        """In the names of transformers' generate."""
        if self.temperature == 0:
            return GREEDY
        return {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": 0}


class TimedStream(TextIteratorStreamer):
    """The text of generated tokens, their ids, and when each came. Text comes with every token, not word by word.

    Attributes:
        ids: of the answer so far, the end token included.
        times: `time.perf_counter()` at each of them.
        text: of them, up to the last whole character.
    """

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.ids: list[int] = []
        self.times: list[float] = []
        self.text = ""

    def put(self, value: torch.Tensor) -> None:
        """Called by generate: the prompt first, then token by token."""
        if self.next_tokens_are_prompt:
            self.next_tokens_are_prompt = False
            return
        self.times.append(time.perf_counter())
        self.ids += value.flatten().tolist()
        text = self._decoded()
        if not text.endswith("\ufffd"):  # a character's other bytes are still to come
            self._say(text)

    def end(self) -> None:
        """Called by generate behind the last token."""
        self._say(self._decoded())
        self.on_finalized_text("", stream_end=True)

    def _decoded(self) -> str:
        return cast(str, self.tokenizer.decode(self.ids, **self.decode_kwargs))  # of one row, hence one text

    def _say(self, text: str) -> None:
        new, self.text = text[len(self.text) :], text
        self.on_finalized_text(new)


@dataclass
class Reply:
    """One answer and what it cost.

    Attributes:
        inputs: the whole prompt.
        text: so far.
        ids: the answer's tokens.
        tower: seconds of the vision tower on all pictures; 0 without pictures, None where a model hides it.
        first: seconds to the first token.
        rest: seconds from the first token to the last.
    """

    inputs: BatchFeature
    text: str = ""
    ids: list[int] = field(default_factory=list)
    tower: float | None = 0.0
    first: float = 0.0
    rest: float = 0.0

    @property
    def per_token(self) -> float | None:
        """Mean seconds of a token behind the first one."""
        return self.rest / (len(self.ids) - 1) if len(self.ids) > 1 else None


def encode(opened: OpenModel, messages: list[dict[str, Any]], images: list[Image.Image], answer: int) -> BatchFeature:
    """A conversation as a model's inputs.

    Raises:
        UserError: with an answer of `answer` tokens it is too long for the model.
    """
    inputs = encode_messages(opened.processor, messages, images)
    check_length(opened.model, inputs["input_ids"].shape[1], answer, opened.name)
    return inputs.to(opened.model.device, opened.model.dtype)


def speak(opened: OpenModel, inputs: BatchFeature, sampling: Sampling) -> Generator[Reply]:
    """The answer, again and again as it grows; the same object each time. Closing the iterator ends the generation.

    Args:
        opened: nobody else uses it meanwhile.
        inputs: of `encode`.
        sampling: how words are chosen.
    """
    reply = Reply(inputs)
    stream = TimedStream(opened.processor.tokenizer)
    tower = getattr(opened.model.model, "vision_tower", None)
    if tower is None:
        reply.tower = None
    started: list[float] = []

    def end(*_: object) -> None:
        assert reply.tower is not None
        synchronize(opened.model.device)
        reply.tower += time.perf_counter() - started[-1]

    with opened.lock:
        hooks = []
        if tower is not None:
            hooks.append(tower.register_forward_pre_hook(lambda *_: started.append(time.perf_counter())))
            hooks.append(tower.register_forward_hook(end))
        begin = time.perf_counter()
        try:
            pieces = stream_inputs(
                opened.model, opened.processor, inputs, sampling.max_new_tokens, sampling.settings(), stream
            )
            with closing(pieces):
                for _ in pieces:
                    _measure(reply, stream, begin)
                    yield reply
        finally:
            for hook in hooks:
                hook.remove()
    _measure(reply, stream, begin)
    yield reply


def _measure(reply: Reply, stream: TimedStream, begin: float) -> None:
    reply.text, reply.ids = stream.text.strip(), list(stream.ids)
    reply.first, reply.rest = stream.times[0] - begin, stream.times[-1] - stream.times[0]
