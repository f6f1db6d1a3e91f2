"""`sparse-vlm serve` in a separate process, and messages for it."""

import base64
import io
import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from email.message import Message
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.forked import wait_for_output
from train.forked import fork_python

QUESTION = "What is shown?"
SITE = "http://localhost:3000"


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def data_url(image: Image.Image) -> str:
    return f"data:image/png;base64,{base64.b64encode(png(image)).decode()}"


def message(url: str | None, question: str = QUESTION) -> Any:
    image = [] if url is None else [{"type": "image_url", "image_url": {"url": url}}]
    return {"role": "user", "content": [*image, {"type": "text", "text": question}]}


class Server:
    """`sparse-vlm serve` on a free port; `root` is its address."""

    def __init__(self, directory: Path, log: Path, *options: str) -> None:
        words = ["-m", "sparse_vlm", "serve", "--port", "0", str(directory), "--device", "cpu", "--dtype", "float32"]
        self.process = fork_python([*words, *options], printed=log, threads=1)
        self.root = wait_for_output(self.process, log, r"http://127\.0\.0\.1:\d+(?=/v1\n)")

    def close(self) -> None:
        self.process.terminate()
        self.process.join(60)
        assert self.process.exitcode is not None

    def post(self, body: Any, path: str = "/v1/chat/completions") -> tuple[int, Any]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        status, _, reply = self.send("POST", path, data, {"Content-Type": "application/json"})
        return status, json.loads(reply)

    def send(
        self, method: str, path: str, data: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, Message, bytes]:
        """Send a request. Returns the status, headers and body of the response."""
        request = urllib.request.Request(self.root + path, data, dict(headers or {}), method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:
                return reply.status, reply.headers, reply.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers, error.read()


@pytest.fixture(scope="package")
def server(vlm_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if find_spec("fastapi") is None or find_spec("openai") is None:
        pytest.skip("the extra serve is not installed: fastapi, openai")
    running = Server(vlm_dir, tmp_path_factory.mktemp("serve") / "log", "--image_urls", "public", "--max_images", "3")
    try:
        yield running
    finally:
        running.close()


@pytest.fixture(scope="package")
def strict(vlm_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with an API key and low limits, which ignores two fields."""
    if find_spec("fastapi") is None or find_spec("openai") is None:
        pytest.skip("the extra serve is not installed: fastapi, openai")
    options = ("--max_requests", "2", "--max_megabytes", "0.1", "--api_key", "sk-1", "--allow_origin", SITE)
    options += ("--served_name", "model", "--ignore", "tools", "--ignore", "cache_prompt")
    running = Server(vlm_dir, tmp_path_factory.mktemp("strict") / "log", *options)
    try:
        yield running
    finally:
        running.close()


@pytest.fixture(scope="package")
def client(server: Server) -> Iterator[Any]:
    import openai

    with openai.OpenAI(base_url=f"{server.root}/v1", api_key="unused", max_retries=0) as client:
        yield client
