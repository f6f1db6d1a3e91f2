"""Answers and errors in OpenAI's response formats: one object, or a stream of events."""

import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from sparse_vlm.vlm.serving.generation import Answer, Piece, TokenInfo
from sparse_vlm.vlm.serving.requests import ChatRequest

logger = logging.getLogger(__name__)


def error_body(message: str, kind: str = "invalid_request_error", code: str | None = None) -> dict[str, Any]:
    """The body of an error response."""
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


INTERNAL_ERROR = error_body("The server failed on this request; its log has the reason.", "server_error")


class Reply:
    """The response to one request, assembled as the answer is generated.

    Args:
        id: identifier of the response.
        created: creation time in seconds since 1970.
        request: the request.
        prompt_tokens: number of prompt tokens, visual tokens included.
    """

    def __init__(self, id: str, created: int, request: ChatRequest, prompt_tokens: int) -> None:
        self.id, self.created, self.request, self.prompt_tokens = id, created, request, prompt_tokens
        self.pieces: list[Piece] = []
        self.answer: Answer | None = None

    def add(self, part: Piece | Answer) -> None:
        """Add what `Engine.answer` yields: pieces, then the finished answer."""
        if isinstance(part, Answer):
            self.answer = part
        else:
            self.pieces.append(part)

    def complete(self) -> dict[str, Any]:
        """The body of a response that is not streamed."""
        text = "".join(piece.text for piece in self.pieces)
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "finish_reason": self._finish_reason}
        choice["logprobs"] = self._logprobs(self.pieces)
        return self._head("chat.completion") | {"choices": [choice], "usage": self._usage()}

    async def events(self, parts: AsyncGenerator[Piece | Answer]) -> AsyncIterator[str]:
        """The lines of a streamed response. Closing the iterator, when the client disconnects, stops the generation."""
        yield self._chunk({"role": "assistant", "content": ""})
        async with aclosing(parts) as running:
            try:
                async for part in running:
                    self.add(part)
                    if isinstance(part, Piece):
                        yield self._chunk({"content": part.text}, logprobs=self._logprobs([part]))
            except Exception:  # the status has been sent already
                logger.exception("A request failed.")
                yield _event(INTERNAL_ERROR)
                return
        yield self._chunk({}, finish_reason=self._finish_reason)
        if self._includes_usage:
            yield _event(self._head("chat.completion.chunk") | {"choices": [], "usage": self._usage()})
        yield "data: [DONE]\n\n"

    @property
    def _includes_usage(self) -> bool:
        return self.request.stream_options is not None and self.request.stream_options.include_usage

    @property
    def _finish_reason(self) -> str:
        return "stop" if self.answer is None else self.answer.finish_reason

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None = None, logprobs: Any = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": logprobs}
        usage = {"usage": None} if self._includes_usage else {}
        return _event(self._head("chat.completion.chunk") | {"choices": [choice]} | usage)

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.request.model}

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
    return f"data: {json.dumps(value)}\n\n"  # ASCII, for clients that split characters or know other line ends
