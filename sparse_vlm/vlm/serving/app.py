"""The HTTP application: routes, errors in OpenAI's format, complete and streamed answers."""

import asyncio
import importlib.metadata
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import ExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from PIL import Image
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from sparse_vlm.errors import UserError
from sparse_vlm.vlm.serving.access import Access
from sparse_vlm.vlm.serving.bodies import read_object
from sparse_vlm.vlm.serving.engine import Engine
from sparse_vlm.vlm.serving.generation import Answer, Piece
from sparse_vlm.vlm.serving.messages import conversation
from sparse_vlm.vlm.serving.refusals import RefusedError
from sparse_vlm.vlm.serving.replies import INTERNAL_ERROR, Reply, error_body
from sparse_vlm.vlm.serving.requests import ChatRequest
from sparse_vlm.vlm.serving.validation import read_request

ROUTES = "GET /v1/models, GET /v1/models/NAME, POST /v1/chat/completions, GET /health and GET /version"
READ = ["GET", "HEAD"]
# without these, proxies such as nginx collect the events of a stream
STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


@dataclass(frozen=True)
class Served:
    """What the API offers.

    Args:
        engine: the model.
        names: accepted model names; the first one is listed.
        access: who may use the API, and what requests may contain.
        created: creation time of the model, in seconds since 1970.
    """

    engine: Engine
    names: Sequence[str]
    access: Access
    created: int = 0

    def check_name(self, name: str) -> None:
        """Raise RefusedError if requests may not name the model so."""
        if name not in self.names:
            message = f"The model {name!r} is not served here. This server has {self.names[0]!r}."
            raise RefusedError(404, message, "model_not_found")


def create_app(served: Served) -> FastAPI:
    """Create the application. It has the ROUTES only; those below /v1 ask for the API key."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        served.engine.close()

    async def authorized(request: Request) -> None:
        served.access.check_key(request.headers.get("Authorization", ""))

    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, lifespan=lifespan)
    app.add_exception_handler(UserError, _refused)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(ClientDisconnect, _disconnected)
    app.add_exception_handler(Exception, _internal_error)
    if origins := served.access.origins:
        app.add_middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"])
    v1 = APIRouter(prefix="/v1", dependencies=[Depends(authorized)])

    @app.api_route("/health", methods=READ)
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.api_route("/version", methods=READ)
    async def version() -> dict[str, str]:
        return {"version": importlib.metadata.version("sparse-vlm")}

    @v1.api_route("/models", methods=READ)
    @v1.api_route("/models/", methods=READ)
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(served, served.names[0])]}

    @v1.api_route("/models/{name:path}", methods=READ)
    async def model(name: str) -> dict[str, Any]:
        served.check_name(name)
        return _model(served, name)

    @v1.post("/chat/completions")
    async def chat(request: Request) -> Response:
        return await _chat(served, request)

    app.include_router(v1)
    return app


def _model(served: Served, name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": served.created, "owned_by": "sparse-vlm"}


class _Stream(StreamingResponse):
    """A streamed answer, which keeps the place of its request until it ends."""

    def __init__(self, events: AsyncIterator[str], place: ExitStack) -> None:
        super().__init__(events, media_type="text/event-stream", headers=STREAM_HEADERS)
        self.place = place

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self.place:
            await super().__call__(scope, receive, send)


async def _chat(served: Served, request: Request) -> Response:
    with ExitStack() as place:
        place.enter_context(served.engine.place())
        body = read_request(await read_object(request, served.access.max_megabytes), served.access.ignored)
        served.check_name(body.model)
        reply, answer = await _begin(served, body)
        if body.stream:
            return _Stream(reply.events(answer), place.pop_all())
        await _collect(reply, answer, request)
    return JSONResponse(reply.complete())


async def _begin(served: Served, body: ChatRequest) -> tuple[Reply, AsyncGenerator[Piece | Answer]]:
    """Open the images and encode the prompt of a request."""
    messages, urls = conversation(body.messages)
    if len(urls) > served.access.max_images:
        raise UserError(f"The request has {len(urls)} images, more than the limit of {served.access.max_images}.")
    images: list[Image.Image] = []
    for number, url in enumerate(urls, start=1):
        images.append(await served.access.addresses.open(url, f"image {number}"))
    visual_tokens = body.mm_processor_kwargs.visual_tokens
    inputs, length = await served.engine.prepare(messages, images, body.length(), visual_tokens)
    reply = Reply(f"chatcmpl-{uuid.uuid4().hex}", int(time.time()), body, inputs["input_ids"].shape[1])
    return reply, served.engine.answer(inputs, body.settings(length))


async def _collect(reply: Reply, answer: AsyncGenerator[Piece | Answer], request: Request) -> None:
    """Collect a complete answer. Stop waiting for it, or generating it, when the client disconnects."""

    async def collect() -> None:
        async with aclosing(answer):
            async for part in answer:
                reply.add(part)

    async def until_disconnected() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    collecting, waiting = asyncio.create_task(collect()), asyncio.create_task(until_disconnected())
    try:
        done, _ = await asyncio.wait({collecting, waiting}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
        collecting.cancel()  # unless it is done
    if collecting not in done:
        raise ClientDisconnect
    collecting.result()  # raises what the generation raised


async def _refused(request: Request, error: Exception) -> Response:
    if isinstance(error, RefusedError):
        kind = "server_error" if error.status >= 500 else "invalid_request_error"
        return JSONResponse(error_body(str(error), kind, error.code), error.status, error.headers)
    return JSONResponse(error_body(str(error)), 400)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    messages = {
        404: f"There is no route {request.url.path}. This server has {ROUTES}.",
        405: f"{request.url.path} does not accept {request.method}.",
    }
    return JSONResponse(error_body(messages.get(error.status_code, error.detail)), error.status_code, error.headers)


async def _disconnected(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # as in nginx; nobody receives it


async def _internal_error(request: Request, error: Exception) -> Response:  # uvicorn logs the error
    return JSONResponse(INTERNAL_ERROR, 500)
