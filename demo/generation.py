"""An answer as it is generated, with the time of each part."""

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, cast

import torch
from PIL import Image
from transformers import BatchFeature, TextIteratorStreamer

from demo.models import OpenModel
from sparse_vlm.devices import synchronize
from sparse_vlm.vlm.chat import check_length, encode_messages, stream_inputs
from sparse_vlm.vlm.decoding import Decoding


class TimedStream(TextIteratorStreamer):
    """Text of the generated tokens, their ids and times. Text comes with every token instead of word by word.

    Attributes:
        ids: the answer's tokens so far, including the end token.
        times: `time.perf_counter()` at each of them.
        text: their text, up to the last complete character.
    """

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.ids: list[int] = []
        self.times: list[float] = []
        self.text = ""

    def put(self, value: torch.Tensor) -> None:
        """Receive the prompt first, then each token; called by generate."""
        if self.next_tokens_are_prompt:
            self.next_tokens_are_prompt = False
            return
        self.times.append(time.perf_counter())
        self.ids += value.flatten().tolist()
        text = self._decoded()
        if not text.endswith("\ufffd"):  # the character's other bytes are still to come
            self._emit(text)

    def end(self) -> None:
        """Finish the text; called by generate after the last token."""
        self._emit(self._decoded())
        self.on_finalized_text("", stream_end=True)

    def _decoded(self) -> str:
        return cast(str, self.tokenizer.decode(self.ids, **self.decode_kwargs))  # one row gives one text

    def _emit(self, text: str) -> None:
        new, self.text = text[len(self.text) :], text
        self.on_finalized_text(new)


@dataclass
class Generation:
    """One answer and its cost.

    Attributes:
        inputs: the whole prompt.
        text: the answer so far.
        ids: the answer's tokens.
        tower_seconds: time of the vision tower on all images; 0 without images, None if the model hides its tower.
        first_seconds: time to the first token.
        rest_seconds: time from the first token to the last.
    """

    inputs: BatchFeature
    text: str = ""
    ids: list[int] = field(default_factory=list)
    tower_seconds: float | None = 0.0
    first_seconds: float = 0.0
    rest_seconds: float = 0.0

    @property
    def seconds_per_token(self) -> float | None:
        """Mean time of each token after the first one."""
        return self.rest_seconds / (len(self.ids) - 1) if len(self.ids) > 1 else None


def encode(
    opened: OpenModel,
    messages: list[dict[str, Any]],
    images: list[Image.Image],
    max_new_tokens: int,
    visual_tokens: int | None = None,
) -> BatchFeature:
    """Encode a conversation as a model's inputs; `visual_tokens` is the number for each image, None the model's own.

    Raises:
        UserError: the conversation and an answer of `max_new_tokens` are too long for the model, or it cannot have the
            requested number of visual tokens or the conversation's regions.
    """
    inputs = encode_messages(opened.processor, messages, images, visual_tokens)
    check_length(opened.model, inputs["input_ids"].shape[1], max_new_tokens, opened.name)
    return inputs.to(opened.model.device, opened.model.dtype)


def generate(opened: OpenModel, inputs: BatchFeature, decoding: Decoding, max_new_tokens: int) -> Generator[Generation]:
    """Yield the answer as it grows; the same object each time. Closing the iterator ends the generation.

    Args:
        opened: the model; it is locked meanwhile.
        inputs: the result of `encode`.
        decoding: how the next token is chosen.
        max_new_tokens: most tokens of the answer.
    """
    generation = Generation(inputs)
    stream = TimedStream(opened.processor.tokenizer)
    tower = getattr(opened.model.model, "vision_tower", None)
    if tower is None:
        generation.tower_seconds = None
    with opened.lock, _timed(tower, generation):
        begin = time.perf_counter()
        pieces = stream_inputs(opened.model, opened.processor, inputs, max_new_tokens, decoding.settings, stream)
        with closing(pieces):
            for _ in pieces:
                _update(generation, stream, begin)
                yield generation
    _update(generation, stream, begin)
    yield generation


@contextmanager
def _timed(tower: Any, generation: Generation) -> Iterator[None]:
    """Add the time of the tower's calls to `generation.tower_seconds`: of whole batches of images, and of views."""

    def timed(method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def call(*args: Any, **options: Any) -> Any:
            assert generation.tower_seconds is not None
            begin = time.perf_counter()
            result = method(*args, **options)
            synchronize(tower.device)
            generation.tower_seconds += time.perf_counter() - begin
            return result

        return call

    names = [name for name in ("forward", "view_hidden_states") if hasattr(tower, name)]
    replaced = {name: vars(tower)[name] for name in names if name in vars(tower)}
    try:
        for name in names:
            setattr(tower, name, timed(getattr(tower, name)))
        yield
    finally:
        for name in names:
            delattr(tower, name)
        for name, method in replaced.items():
            setattr(tower, name, method)


def _update(generation: Generation, stream: TimedStream, begin: float) -> None:
    generation.text, generation.ids = stream.text.strip(), list(stream.ids)
    generation.first_seconds = stream.times[0] - begin
    generation.rest_seconds = stream.times[-1] - stream.times[0]
