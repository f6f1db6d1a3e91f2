"""The HTTP application: routes, errors in OpenAI's format, complete and streamed answers."""

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
from sparse_vlm.vlm.serving.replies import INTERNAL_ERROR, Reply, error_body
from sparse_vlm.vlm.serving.requests import ChatRequest, conversation, validation_message


@dataclass(frozen=True)
class Served:
    """Model and limits of the API.

    Args:
        engine: the model.
        names: accepted model names; the first one is listed.
        addresses: where images may come from.
        max_images: limit per request.
        created: creation time of the model, in seconds since 1970.
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
    """Create the application. It has the routes GET /health, GET /v1/models and POST /v1/chat/completions only."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        served.engine.close()

    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, lifespan=lifespan)
    app.add_exception_handler(RequestValidationError, _bad_request)
    app.add_exception_handler(UserError, _bad_request)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _internal_error)

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
        raise UserError(f"The request has {len(urls)} images, more than the limit of {served.max_images}.")
    images: list[Image.Image] = []
    for number, url in enumerate(urls, start=1):
        images.append(await served.addresses.open(url, f"image {number}"))
    visual_tokens = body.mm_processor_kwargs.visual_tokens
    inputs, length = await served.engine.prepare(messages, images, body.length(), visual_tokens)
    reply = Reply(f"chatcmpl-{uuid.uuid4().hex}", int(time.time()), body, inputs["input_ids"].shape[1])
    answer = served.engine.answer(inputs, body.settings(length))
    if body.stream:
        return StreamingResponse(reply.events(answer), media_type="text/event-stream")
    async with aclosing(answer):
        async for part in answer:
            if await request.is_disconnected():
                break
            reply.add(part)
    return JSONResponse(reply.complete())


async def _bad_request(request: Request, error: Exception) -> Response:
    message = validation_message(error.errors()) if isinstance(error, RequestValidationError) else str(error)
    return JSONResponse(error_body(message), 400)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    messages = {
        404: f"There is no route {request.url.path}.",
        405: f"{request.url.path} does not accept {request.method}.",
    }
    return JSONResponse(error_body(messages.get(error.status_code, error.detail)), error.status_code)


async def _internal_error(request: Request, error: Exception) -> Response:  # uvicorn logs the error
    return JSONResponse(INTERNAL_ERROR, 500)
