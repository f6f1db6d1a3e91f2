"""The HTTP side: routes, errors in OpenAI's form, answers whole or as server-sent events."""

import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from PIL import Image
from starlette.exceptions import HTTPException

from sparse_vlm.errors import UserError
from sparse_vlm.vlm.serving.addresses import Addresses
from sparse_vlm.vlm.serving.engine import Engine
from sparse_vlm.vlm.serving.generation import Settings
from sparse_vlm.vlm.serving.protocol import ChatRequest, Message, sentence
from sparse_vlm.vlm.serving.replies import Reply


@dataclass(frozen=True)
class Served:
    """What the API offers.

    Args:
        engine: the model.
        names: under which requests may name it; the first is listed.
        addresses: where images come from.
        max_images: of a request.
        created: seconds since 1970, of the model.
    """

    engine: Engine
    names: Sequence[str]
    addresses: Addresses
    max_images: int = 16
    created: int = 0

    def __post_init__(self) -> None:
        if self.max_images < 1:
            raise UserError(f"--max_images must be 1 or more, got {self.max_images}.")


def create_app(served: Served) -> FastAPI:
    """The application: GET /health, GET /v1/models, POST /v1/chat/completions, and nothing else."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        served.engine.close()

    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, lifespan=lifespan)
    app.add_exception_handler(RequestValidationError, _bad_request)
    app.add_exception_handler(UserError, _bad_request)
    app.add_exception_handler(HTTPException, _no_such_route)
    app.add_exception_handler(Exception, _broken)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        model = {"id": served.names[0], "object": "model", "created": served.created, "owned_by": "sparse-vlm"}
        return {"object": "list", "data": [model]}

    @app.post("/v1/chat/completions")
    async def chat(body: ChatRequest, request: Request) -> Response:
        return await _chat(served, body, request)

    return app


async def _chat(served: Served, body: ChatRequest, request: Request) -> Response:
    body.check()
    if body.model not in served.names:
        raise UserError(f"The model {body.model!r} is not served here. This server has {served.names[0]!r}.")
    messages, urls = conversation(body.messages)
    if len(urls) > served.max_images:
        raise UserError(f"The request has {len(urls)} images, more than the {served.max_images} that are taken here.")
    images: list[Image.Image] = []
    for number, url in enumerate(urls, start=1):
        images.append(await served.addresses.open(url, f"image {number}"))
    inputs, length = await served.engine.prepare(messages, images, body.length())
    reply = Reply(f"chatcmpl-{uuid.uuid4().hex}", int(time.time()), body, inputs["input_ids"].shape[1])
    answer = served.engine.answer(inputs, _settings(body, length))
    if body.stream:
        return StreamingResponse(reply.events(answer, served.engine.model), media_type="text/event-stream")
    async with aclosing(answer):
        async for part in answer:
            if await request.is_disconnected():
                break
            reply.add(part)
    return JSONResponse(reply.whole(served.engine.model))


def _settings(body: ChatRequest, length: int) -> Settings:
    # without a temperature answers are greedy as everywhere here, unless top_p asks for draws
    drawn = body.top_p is not None and body.top_p < 1
    temperature = body.temperature if body.temperature is not None else float(drawn)
    top_logprobs = (body.top_logprobs or 0) if body.logprobs else None
    return Settings(length, temperature, body.top_p or 1.0, body.seed, body.stops(), top_logprobs)


def conversation(messages: Sequence[Message]) -> tuple[list[dict[str, Any]], list[str]]:
    """Messages for a chat template, and the addresses of their images in their order.

    The images of a turn stand before its words, as in training, unless words stand between them.
    """
    turns, urls = [], list[str]()
    for message in messages:
        parts: list[dict[str, Any]] = []
        for part in [] if isinstance(message.content, str) else message.content:
            if part.type == "text":
                parts.append({"type": "text", "text": part.text})
            else:
                parts.append({"type": "image"})
                urls.append(part.image_url.url)
        if isinstance(message.content, str):
            parts.append({"type": "text", "text": message.content})
        kinds = [part["type"] for part in parts]
        if "image" in kinds and len("".join(kind[0] for kind in kinds).strip("t").split("t")) == 1:
            parts.sort(key=lambda part: part["type"] != "image")
        turns.append({"role": "system" if message.role == "developer" else message.role, "content": parts})
    return turns, urls


def _error(status: int, message: str, kind: str = "invalid_request_error") -> JSONResponse:
    return JSONResponse({"error": {"message": message, "type": kind, "param": None, "code": None}}, status)


async def _bad_request(request: Request, error: Exception) -> Response:
    return _error(400, sentence(error.errors()) if isinstance(error, RequestValidationError) else str(error))


async def _no_such_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        return _error(405, f"{request.url.path} does not take {request.method}.")
    return _error(
        error.status_code, f"There is no {request.url.path} here." if error.status_code == 404 else error.detail
    )


async def _broken(request: Request, error: Exception) -> Response:  # uvicorn logs the error
    return _error(500, "The server failed at this request; its log says why.", "server_error")
