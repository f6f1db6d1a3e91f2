"""Answers, complete and streamed."""

import asyncio
import json
from typing import Any

import pytest

pytest.importorskip("fastapi")

from starlette.requests import ClientDisconnect

from sparse_vlm.vlm.serving.app import _collect
from sparse_vlm.vlm.serving.generation import Piece
from sparse_vlm.vlm.serving.replies import Reply
from sparse_vlm.vlm.serving.requests import ChatRequest

QUESTION: Any = {"model": "vlm", "messages": [{"role": "user", "content": "Q"}]}


class Client:
    """A request whose client disconnects after a time."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    async def receive(self) -> dict[str, str]:
        await asyncio.sleep(self.seconds)
        return {"type": "http.disconnect"}


def test_an_answer_ends_when_its_client_disconnects() -> None:
    """Also one that has not begun."""
    closed = []

    async def answer(pieces: int, seconds: float) -> Any:
        try:
            for _ in range(pieces):
                yield Piece("a")
            await asyncio.sleep(seconds)
        finally:
            closed.append(pieces)

    async def collect(pieces: int, seconds: float, patience: float) -> str:
        reply, client = Reply("id", 0, ChatRequest(**QUESTION), 1), Client(patience)
        await _collect(reply, answer(pieces, seconds), client)  # type: ignore[arg-type]
        return reply.complete()["choices"][0]["message"]["content"]

    for pieces in (0, 3):
        with pytest.raises(ClientDisconnect):
            asyncio.run(collect(pieces, 600, 0.01))
        assert asyncio.run(collect(pieces, 0, 600)) == "a" * pieces
    assert closed == [0, 0, 3, 3]


def test_events_are_ascii_lines() -> None:
    """Clients that split a stream at every line end of Unicode, or inside a character, read them too."""
    text = "é \u2028 🙂 \x85"

    async def answer() -> Any:
        yield Piece(text)

    async def events() -> list[str]:
        reply = Reply("id", 0, ChatRequest(**QUESTION), 1)
        return [event async for event in reply.events(answer())]

    begin, said, end, done = asyncio.run(events())
    assert all(event.isascii() and event.endswith("\n\n") for event in (begin, said, end, done))
    assert json.loads(said.removeprefix("data: "))["choices"][0]["delta"] == {"content": text}
    assert done == "data: [DONE]\n\n"
