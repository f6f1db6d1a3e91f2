"""An answer in OpenAI's forms: one object, or a stream of events."""

import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from sparse_vlm.vlm.serving.generation import Answer, Piece, TokenInfo, finish_reason
from sparse_vlm.vlm.serving.protocol import ChatRequest

logger = logging.getLogger(__name__)


class Reply:
    """One answer as it grows.

    Args:
        id: of the reply.
        created: seconds since 1970.
        request: what was asked for.
        prompt_tokens: of the prompt, visual tokens included.
    """

    def __init__(self, id: str, created: int, request: ChatRequest, prompt_tokens: int) -> None:
        self.id, self.created, self.request, self.prompt_tokens = id, created, request, prompt_tokens
        self.pieces: list[Piece] = []
        self.answer: Answer | None = None

    def add(self, part: Piece | Answer) -> None:
        """Take what the engine says."""
        if isinstance(part, Answer):
            self.answer = part
        else:
            self.pieces.append(part)

    def whole(self, model: Any) -> dict[str, Any]:
        """The body of a reply that is not streamed."""
        text = "".join(piece.text for piece in self.pieces)
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "finish_reason": self._finish(model)}
        choice["logprobs"] = self._logprobs(self.pieces)
        return self._head("chat.completion") | {"choices": [choice], "usage": self._usage()}

    async def events(self, parts: AsyncGenerator[Piece | Answer], model: Any) -> AsyncIterator[str]:
        """The lines of a stream; closing the iterator, when the client goes away, stops the generation."""
        yield self._chunk({"role": "assistant", "content": ""})
        async with aclosing(parts) as running:
            try:
                async for part in running:
                    self.add(part)
                    if isinstance(part, Piece):
                        yield self._chunk({"content": part.text}, logprobs=self._logprobs([part]))
            except Exception:  # the status is sent already
                logger.exception("A request failed.")
                message = "The server failed at this request; its log says why."
                yield _event({"error": {"message": message, "type": "server_error", "param": None, "code": None}})
                return
        yield self._chunk({}, finish=self._finish(model))
        options = self.request.stream_options
        if options is not None and options.include_usage:
            yield _event(self._head("chat.completion.chunk") | {"choices": [], "usage": self._usage()})
        yield "data: [DONE]\n\n"

    def _chunk(self, delta: dict[str, Any], finish: str | None = None, logprobs: Any = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": logprobs}
        return _event(self._head("chat.completion.chunk") | {"choices": [choice]})

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.request.model}

    def _finish(self, model: Any) -> str:
        return "stop" if self.answer is None else finish_reason(self.answer, model)

    def _usage(self) -> dict[str, int]:
        count = 0 if self.answer is None else len(self.answer.ids)
        prompt = self.prompt_tokens
        return {"prompt_tokens": prompt, "completion_tokens": count, "total_tokens": prompt + count}

    def _logprobs(self, pieces: list[Piece]) -> dict[str, Any] | None:
        if not self.request.logprobs:
            return None
        return {"content": [_token(piece.token) for piece in pieces if piece.token is not None], "refusal": None}


def _token(info: TokenInfo) -> dict[str, Any]:
    return _entry(info.text, info.logprob) | {"top_logprobs": [_entry(text, value) for text, value in info.top]}


def _entry(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"
