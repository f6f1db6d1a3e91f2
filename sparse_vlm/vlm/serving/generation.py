"""One answer as it is generated, for the API: pieces of text up to a stop string, tokens and their probabilities."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import Event
from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from sparse_vlm.vlm.chat import GREEDY


@dataclass(frozen=True)
class TokenInfo:
    """A generated token with the most likely ones in its place: (text, natural logarithm of the probability)."""

    text: str
    logprob: float
    top: list[tuple[str, float]]


@dataclass(frozen=True)
class Piece:
    """What a step adds to an answer: text that is final, and the token where probabilities are asked for."""

    text: str
    token: TokenInfo | None = None


@dataclass(frozen=True)
class Settings:
    """How an answer is generated.

    Args:
        max_new_tokens: where it is cut.
        temperature: 0 is greedy.
        top_p: the most likely tokens that have this probability together are drawn from.
        seed: of the draws; None: as it comes.
        stops: strings that end the answer; they are not part of it.
        top_logprobs: so many of the most likely tokens are told; None: no probabilities.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stops: Sequence[str] = ()
    top_logprobs: int | None = None

    def options(self) -> dict[str, Any]:
        """In the names of transformers' generate."""
        sampling = {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": 0}
        return {"max_new_tokens": self.max_new_tokens, "num_beams": 1, **(sampling if self.temperature else GREEDY)}


@dataclass
class Answer(BaseStreamer):
    """An answer on its way; `generate` hands it the prompt, then token by token.

    Attributes:
        ids: so far, the end token included.
        said: the text that has been emitted.
        stopped: a stop string was found.
    """

    tokenizer: Any
    settings: Settings
    emit: Callable[[Piece], object]
    recorder: "_Recorder | None" = None
    ids: list[int] = field(default_factory=list)
    said: str = ""
    stopped: bool = False
    _prompt_seen: bool = False

    def put(self, value: Tensor) -> None:
        """Called by generate."""
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        self.ids += value.flatten().tolist()
        text = self._text()
        ends = [place for place in (text.find(stop) for stop in self.settings.stops) if place >= 0]
        if ends:
            self.stopped = True
            self._say(text[: min(ends)])
        elif text.endswith("\ufffd"):  # a character's other bytes are still to come
            self._say(self.said)
        else:
            self._say(text[: len(text) - _held_back(text, self.settings.stops)])

    def end(self) -> None:
        """Called by generate behind the last token: what was held back is text after all."""
        if not self.stopped and (rest := self._text()[len(self.said) :]):
            self.emit(Piece(rest))
            self.said += rest

    def _text(self) -> str:
        return self.tokenizer.decode(self.ids, skip_special_tokens=True)

    def _say(self, text: str) -> None:
        new, self.said = text[len(self.said) :], max(text, self.said, key=len)
        token = None if self.recorder is None else self.recorder.info(self.ids[-1])
        if new or token is not None:
            self.emit(Piece(new, token))


def _held_back(text: str, stops: Sequence[str]) -> int:
    """Letters at the end of a text that may be the beginning of a stop string."""
    lengths = (size for stop in stops for size in range(1, len(stop)) if text.endswith(stop[:size]))
    return max(lengths, default=0)


class _Recorder(LogitsProcessor):
    """Keeps the probabilities of the step, those of the model, before temperature and top_p."""

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


class _Ended(StoppingCriteria):
    """Ends a generation at a stop string, or when nobody waits for it any more."""

    def __init__(self, answer: Answer, abandoned: Event) -> None:
        self.answer, self.abandoned = answer, abandoned

    def __call__(self, input_ids: Any, scores: Any, **unused: Any) -> Any:  # as transformers calls it
        ended = self.answer.stopped or self.abandoned.is_set()
        return torch.full((len(input_ids),), ended, device=input_ids.device)


def generate(
    model: Any, tokenizer: Any, inputs: BatchFeature, settings: Settings, emit: Callable[[Piece], object], stop: Event
) -> Answer:
    """Generate one answer.

    Args:
        model, tokenizer: of `load_vlm`; nobody else uses them meanwhile.
        inputs: a prompt.
        settings: how.
        emit: called with each piece.
        stop: ends the generation within a token when it is set.
    """
    recorder = None if settings.top_logprobs is None else _Recorder(tokenizer, settings.top_logprobs)
    answer = Answer(tokenizer, settings, emit, recorder)
    devices = [] if model.device.type == "cpu" else [model.device]
    with torch.random.fork_rng(devices, enabled=settings.seed is not None, device_type=_kind(model.device)):
        if settings.seed is not None:
            torch.manual_seed(settings.seed)
        model.generate(
            **inputs.to(model.device),
            streamer=answer,
            stopping_criteria=StoppingCriteriaList([_Ended(answer, stop)]),
            logits_processor=LogitsProcessorList([] if recorder is None else [recorder]),
            **settings.options(),
        )
    return answer


def _kind(device: torch.device) -> str:
    return "cuda" if device.type == "cpu" else device.type  # with no devices, torch asks for a kind all the same


def finish_reason(answer: Answer, model: Any) -> str:
    """ "stop": the model or a stop string ended the answer; "length": it was cut."""
    end = model.generation_config.eos_token_id
    ends = end if isinstance(end, list) else [end]
    cut = len(answer.ids) >= answer.settings.max_new_tokens and answer.ids[-1] not in ends
    return "length" if cut and not answer.stopped else "stop"
