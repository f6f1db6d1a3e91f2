"""The command `sparse-vlm serve`: options, concurrency, shutdown, and open-webui's requests."""

import json
import os
import signal
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from PIL import Image

from sparse_vlm.cli import main
from tests.vlm.conftest import Loaded
from tests.vlm.serving.conftest import QUESTION, Server, data_url, message


@pytest.mark.slow
@pytest.mark.parametrize("bits", ["bnb-4bit", "8"])
def test_a_quantized_model_answers_about_images(
    vlm_dir: Path, images: list[Image.Image], tmp_path: Path, bits: str
) -> None:
    pytest.importorskip("fastapi")
    pytest.importorskip("bitsandbytes")
    running = Server(vlm_dir, tmp_path / "log", "--quantization", bits)
    try:
        body = {"model": vlm_dir.name, "max_tokens": 6, "messages": [message(data_url(images[0]))]}
        status, reply = running.post(body)
    finally:
        running.close()
    assert (status, reply["usage"]["completion_tokens"]) == (200, 6)


def test_an_open_webui_conversation(server: Server, vlm: Loaded, images: list[Image.Image]) -> None:
    """open-webui requests the model list, a streamed answer with text before the image, and a title for the chat."""
    with urllib.request.urlopen(f"{server.root}/v1/models") as reply:
        model = json.load(reply)["data"][0]["id"]
    first = {"role": "user", "content": message(data_url(images[0]))["content"][::-1]}
    body = {"stream": True, "model": model, "messages": [{"role": "system", "content": "Be brief."}, first]}
    body |= {"stream_options": {"include_usage": True}, "max_tokens": 6, "temperature": 0, "stop": None, "seed": None}
    data = json.dumps(body).encode()
    request = urllib.request.Request(
        f"{server.root}/v1/chat/completions", data, {"Content-Type": "application/json", "Authorization": "Bearer x"}
    )
    with urllib.request.urlopen(request) as reply:
        assert reply.headers["Content-Type"].startswith("text/event-stream")
        lines = [line for line in reply.read().decode().split("\n\n") if line]
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 6
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1] if chunk["choices"][0]["finish_reason"]] == [
        "length"
    ]
    said = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks[:-1])
    assert said
    title = f"### Task:\nGenerate a concise title.\n### Chat History:\nUSER: {QUESTION}\nASSISTANT: {said}"
    task = {"model": model, "messages": [{"role": "user", "content": title}], "stream": False}
    status, reply = server.post(task | {"max_completion_tokens": 5})
    assert status == 200
    assert reply["choices"][0]["message"]["role"] == "assistant"
    history = [first, {"role": "assistant", "content": said}, {"role": "user", "content": "Why?"}]
    assert server.post({"model": model, "messages": history, "max_tokens": 2})[0] == 200


def test_health_during_generation_and_a_client_that_disconnects(server: Server) -> None:
    import httpx

    body = {"model": "vlm", "messages": [message(None)], "max_tokens": 1900, "stream": True}
    with httpx.stream("POST", f"{server.root}/v1/chat/completions", json=body, timeout=60) as reply:
        chunks = reply.iter_lines()
        for _ in range(10):
            next(chunks)
        begin = time.perf_counter()
        assert httpx.get(f"{server.root}/health", timeout=5).json() == {"status": "ok"}
        assert time.perf_counter() - begin < 5
        bad = {"model": "vlm", "messages": [message(None)], "n": 3}
        assert httpx.post(f"{server.root}/v1/chat/completions", json=bad, timeout=5).status_code == 400
    status, _ = server.post({"model": "vlm", "messages": [message(None)], "max_tokens": 1})
    assert status == 200


@pytest.mark.slow
def test_ctrl_c_during_an_answer_ends_the_server_silently(vlm_dir: Path, tmp_path: Path) -> None:
    import httpx

    server = Server(vlm_dir, tmp_path / "log")
    body = {"model": "vlm", "messages": [message(None)], "max_tokens": 1900, "stream": True}
    try:
        with httpx.stream("POST", f"{server.root}/v1/chat/completions", json=body, timeout=60) as reply:
            next(reply.iter_lines())
            os.kill(server.process.pid, signal.SIGINT)
            server.process.join(60)
            assert server.process.exitcode in (0, 130)
    finally:
        server.close()
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_other_directories_are_refused(llm_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for directory in (llm_dir, tmp_path / "none"):
        assert main(["serve", str(directory), "--port", "8000"]) == 2
        assert capsys.readouterr().err == (
            f"error: {directory} is not a model directory. `sparse-vlm build` makes one.\n"
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--port", "99999"], "--port must be between 0 and 65535, got 99999."),
        (["--host", "no.such.host.invalid"], "Cannot listen on no.such.host.invalid, port 8000"),
        (["--image_urls", "all"], "Unknown --image_urls 'all'"),
        (["--port", "0", "--max_images", "0"], "--max_images must be 1 or more"),
        (["--port", "0", "--max_new_tokens", "0"], "--max_new_tokens must be 1 or more"),
        (["--port", "0", "--max_requests", "0"], "--max_requests must be 1 or more, got 0"),
        (["--max_megabytes", "-1"], "--max_megabytes must be positive, got -1"),
        (["--allow_origin", "localhost"], "--allow_origin must be * or look like http://localhost:3000"),
        (["--ignore", "model"], "--ignore model: the server needs this field."),
        (["--bits", "3"], "--bits must be 4 or 8, got 3"),
        (["--fetch_seconds", "0"], "--fetch_seconds must be positive, got 0"),
    ],
)
def test_bad_options_are_one_line_errors(
    vlm_dir: Path, capsys: pytest.CaptureFixture[str], options: list[str], sentence: str
) -> None:
    assert main(["serve", *options, str(vlm_dir), "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
