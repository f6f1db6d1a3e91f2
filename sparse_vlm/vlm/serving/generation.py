"""Generation of one answer for the API: pieces of text up to a stop string, tokens and their probabilities."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from threading import Event
from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature, LogitsProcessor, LogitsProcessorList, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from sparse_vlm.vlm.decoding import Decoding, EndWhen


@dataclass(frozen=True)
class TokenInfo:
    """A generated token and the most likely alternatives, as (text, natural logarithm of the probability)."""

    text: str
    logprob: float
    top: list[tuple[str, float]]


@dataclass(frozen=True)
class Piece:
    """Addition of one decoding step to an answer: final text, and the token if probabilities were requested."""

    text: str
    token: TokenInfo | None = None


@dataclass(frozen=True)
class Settings:
    """Options for generating an answer.

    Args:
        max_new_tokens: maximum length of the answer.
        decoding: greedy or sampled.
        seed: seed for sampling; None: not reproducible.
        stops: strings that end the answer and are not part of it.
        top_logprobs: number of most likely tokens to report; None: report no probabilities.
    """

    max_new_tokens: int
    decoding: Decoding = field(default_factory=Decoding)
    seed: int | None = None
    stops: Sequence[str] = ()
    top_logprobs: int | None = None


@dataclass
class Answer(BaseStreamer):
    """An answer that is being generated: transformers' `generate` calls `put` with the prompt, then with each token.

    transformers' own TextIteratorStreamer serves neither stop strings nor probabilities, and emits whole words only.

    Attributes:
        ids: the tokens so far, including the end token.
        text: the text emitted so far.
        stopped: a stop string was found.
    """

    tokenizer: Any
    settings: Settings
    emit: Callable[[Piece], object]
    end_ids: Collection[int] = ()
    recorder: "_Recorder | None" = None
    ids: list[int] = field(default_factory=list)
    text: str = ""
    stopped: bool = False
    _prompt_seen: bool = False

    @property
    def finish_reason(self) -> str:
        """ "stop": the model or a stop string ended the answer; "length": it reached its maximum length."""
        cut = len(self.ids) >= self.settings.max_new_tokens and self.ids[-1] not in self.end_ids
        return "length" if cut and not self.stopped else "stop"

    def put(self, value: Tensor) -> None:
        """Take the prompt, then each token."""
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        self.ids += value.flatten().tolist()
        text = self._decode()
        ends = [place for place in (text.find(stop) for stop in self.settings.stops) if place >= 0]
        if ends:
            self.stopped = True
            self._emit(text[: min(ends)])
        elif text.endswith("\ufffd"):  # the other bytes of the last character are still to come
            self._emit(self.text)
        else:
            self._emit(text[: len(text) - _possible_stop(text, self.settings.stops)])

    def end(self) -> None:
        """Emit text that was held back as the possible beginning of a stop string."""
        if not self.stopped and (rest := self._decode()[len(self.text) :]):
            self.emit(Piece(rest))
            self.text += rest

    def _decode(self) -> str:
        return self.tokenizer.decode(self.ids, skip_special_tokens=True)

    def _emit(self, text: str) -> None:
        new, self.text = text[len(self.text) :], max(text, self.text, key=len)
        token = None if self.recorder is None else self.recorder.info(self.ids[-1])
        if new or token is not None:
            self.emit(Piece(new, token))


def _possible_stop(text: str, stops: Sequence[str]) -> int:
    """The number of characters at the end of a text that may be the beginning of a stop string."""
    lengths = (size for stop in stops for size in range(1, len(stop)) if text.endswith(stop[:size]))
    return max(lengths, default=0)


class _Recorder(LogitsProcessor):
    """Records the model's probabilities at each decoding step, before temperature and top_p are applied."""

    def __init__(self, tokenizer: Any, top: int) -> None:
        self.tokenizer, self.top = tokenizer, top
        self.logprobs = torch.empty(0)

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        self.logprobs = torch.log_softmax(scores[0].float(), dim=-1)
        return scores

    def info(self, token: int) -> TokenInfo:
        values, ids = self.logprobs.topk(self.top)
        top = [(self._text(index), value) for index, value in zip(ids.tolist(), values.tolist(), strict=True)]
        return TokenInfo(self._text(token), self.logprobs[token].item(), top)

    def _text(self, token: int) -> str:
        return self.tokenizer.decode([token])


def generate(
    model: Any, tokenizer: Any, inputs: BatchFeature, settings: Settings, emit: Callable[[Piece], object], stop: Event
) -> Answer:
    """Generate one answer.

    Args:
        model, tokenizer: returned by `load_vlm`; not used by another thread meanwhile.
        inputs: the encoded prompt.
        settings: how the answer is generated.
        emit: called with each piece.
        stop: setting it ends the generation within a token.
    """
    recorder = None if settings.top_logprobs is None else _Recorder(tokenizer, settings.top_logprobs)
    end = model.generation_config.eos_token_id
    answer = Answer(tokenizer, settings, emit, end if isinstance(end, list) else [end], recorder)
    devices = [] if model.device.type == "cpu" else [model.device]
    device_type = "cuda" if model.device.type == "cpu" else model.device.type  # torch requires one without devices too
    with torch.random.fork_rng(devices, enabled=settings.seed is not None, device_type=device_type):
        if settings.seed is not None:
            torch.manual_seed(settings.seed)
        model.generate(
            **inputs.to(model.device),
            streamer=answer,
            stopping_criteria=StoppingCriteriaList([EndWhen(lambda: answer.stopped or stop.is_set())]),
            logits_processor=LogitsProcessorList([] if recorder is None else [recorder]),
            max_new_tokens=settings.max_new_tokens,
            **settings.decoding.settings,
        )
    return answer
