"""`sparse-vlm serve` as documented: transformers' server in a process of its own, asked by OpenAI's client."""

import base64
import io
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sparse_vlm.cli import main
from sparse_vlm.vlm.chat import answer
from tests.vlm.conftest import Loaded

QUESTION = "What is shown?"


def data_url(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def message(url: str | None, question: str = QUESTION) -> Any:
    picture = [] if url is None else [{"type": "image_url", "image_url": {"url": url}}]
    return {"role": "user", "content": [*picture, {"type": "text", "text": question}]}


@pytest.fixture(scope="module")
def address(vlm_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(vlm_dir, tmp_path_factory.mktemp("serve") / "log") as url:
        yield url


@contextmanager
def serving(vlm_dir: Path, log: Path, *options: str) -> Iterator[str]:
    """The address of a server that answers."""
    if find_spec("fastapi") is None or find_spec("openai") is None:
        pytest.skip("the extra serve is not installed: fastapi, openai")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "sparse_vlm.cli", "serve", str(vlm_dir), "--device", "cpu", *options]
    with log.open("w") as file:
        server = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)], stdout=file, stderr=subprocess.STDOUT
        )
    try:
        _wait(server, f"http://127.0.0.1:{port}/health", log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(60)


def _wait(server: subprocess.Popen, url: str, log: Path) -> None:
    for _ in range(600):
        assert server.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(url, timeout=1)
            return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(log.read_text())


@pytest.mark.slow
def test_openais_client(address: str, vlm_dir: Path, vlm: Loaded, images: list[Image.Image]) -> None:
    import openai

    options: Any = {"model": str(vlm_dir), "max_tokens": 6, "temperature": 0.0}
    expected = answer(*vlm, images[0], QUESTION, max_new_tokens=6)
    with openai.OpenAI(base_url=address, api_key="unused") as client:
        reply = client.chat.completions.create(messages=[message(data_url(images[0]))], **options)
        assert reply.choices[0].message.content.strip() == expected
        pieces = client.chat.completions.create(messages=[message(data_url(images[0]))], stream=True, **options)
        assert "".join(piece.choices[0].delta.content or "" for piece in pieces).strip() == expected

        blind = client.chat.completions.create(messages=[message(None)], **options)
        assert blind.choices[0].message.content.strip() == answer(*vlm, None, QUESTION, max_new_tokens=6)
        turns = [message(data_url(images[0])), {"role": "assistant", "content": expected}, message(data_url(images[1]))]
        second = client.chat.completions.create(messages=turns, **options)
        assert second.usage.prompt_tokens > reply.usage.prompt_tokens + 6  # the second picture's tokens

        with pytest.raises(openai.BadRequestError):  # the server has one model
            client.chat.completions.create(messages=[message(None)], **options | {"model": "another"})
        with pytest.raises(openai.InternalServerError):
            client.chat.completions.create(messages=[message("data:image/png;base64,bm8gaW1hZ2U=")], **options)
        again = client.chat.completions.create(messages=[message(data_url(images[0]))], **options)
        assert again.choices[0].message.content.strip() == expected


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bnb-4bit", "bnb-8bit"])
def test_a_quantized_server_answers_about_images(
    vlm_dir: Path, images: list[Image.Image], tmp_path: Path, kind: str
) -> None:
    import openai

    options: Any = {"model": str(vlm_dir), "max_tokens": 6, "temperature": 0.0}
    with (
        serving(vlm_dir, tmp_path / "log", "--quantization", kind) as address,
        openai.OpenAI(base_url=address, api_key="unused") as client,
    ):
        reply = client.chat.completions.create(messages=[message(data_url(images[0]))], **options)
    assert reply.choices[0].message.content


def test_only_model_directories_of_ours(llm_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for directory in (llm_dir, tmp_path / "none"):
        assert main(["serve", str(directory), "--port", "8000"]) == 2
        assert capsys.readouterr().err == (
            f"error: {directory} is no model directory of ours. `sparse-vlm build` makes one.\n"
        )
