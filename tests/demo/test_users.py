"""Clients of the demo: ten at once, one that stops its answer, and some that ask for other people's files."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from gradio_client import Client, handle_file
from PIL import Image

from sparse_vlm.vlm.chat import answer
from tests.demo.conftest import MAX_NEW_TOKENS, Served
from tests.forked import ROOT

pytestmark = pytest.mark.slow

USERS = 10


def greedy(client: Client, message: dict[str, Any], max_new_tokens: int) -> Any:
    """Start a greedy answer."""
    return client.submit(message, 0, 1, max_new_tokens, api_name="/ask")


def first_chat(outputs: Any) -> list[dict[str, Any]]:
    """The first chat in the outputs of /ask: the question box comes first, then the chats."""
    return outputs[1]


def last_answer(outputs: Any) -> str:
    """The last answer of the first model."""
    return first_chat(outputs)[-1]["content"][0]["text"]


def test_ten_users_at_once(served: Served, vlm: tuple[Any, Any], images: list[Image.Image], tmp_path: Path) -> None:
    """Each sends its own image and question, and gets the answer to them."""
    files = [tmp_path / f"{number}.png" for number in range(USERS)]
    for file, image in zip(files, images, strict=True):
        image.save(file)
    questions = [f"{word}?" for word in ("Who", "What", "Where", "When", "Which", "Whose", "Why", "How", "Is", "Are")]

    def use(number: int) -> Any:
        client = Client(served.address, download_files=False, verbose=False)
        message = {"text": questions[number], "files": [handle_file(str(files[number]))]}
        return greedy(client, message, MAX_NEW_TOKENS).result(timeout=600)

    with ThreadPoolExecutor(USERS) as pool:
        results = list(pool.map(use, range(USERS)))
    expected = [
        answer(*vlm, image, question, MAX_NEW_TOKENS) for image, question in zip(images, questions, strict=True)
    ]
    assert [last_answer(result) for result in results] == expected
    assert len(set(expected)) > USERS // 2  # otherwise swapped answers would pass unnoticed
    for result, question in zip(results, questions, strict=True):
        chat = first_chat(result)
        assert len(chat) == 2
        assert chat[0]["content"][-1]["text"] == question


def test_stop_keeps_the_answer_so_far(served: Served) -> None:
    client = Client(served.address, download_files=False, verbose=False)
    job = greedy(client, {"text": "Tell me everything.", "files": []}, 1024)
    end = time.monotonic() + 300
    while len(job.outputs()) < 3:
        assert time.monotonic() < end
        time.sleep(0.02)
    client.predict(api_name="/stop")
    result = job.result(timeout=300)
    assert 0 < len(last_answer(result).split()) < 1000
    again = greedy(client, {"text": "Shorter.", "files": []}, 4).result(timeout=300)
    assert len(first_chat(again)) == 4


def test_only_uploads_are_served(served: Served) -> None:
    for path in ("/etc/passwd", str(ROOT / "README.md"), str(served.model / "config.json")):
        assert httpx.get(f"{served.address}/gradio_api/file={path}").status_code in (403, 404)


def test_a_file_of_the_server_is_not_an_upload(served: Served, tmp_path: Path) -> None:
    """The request names an image on the server as if it had been uploaded; gradio's own client would refuse it."""
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    file = {"path": str(tmp_path / "secret.png"), "meta": {"_type": "gradio.FileData"}}
    call = f"{served.address}/gradio_api/call/ask"
    event = httpx.post(call, json={"data": [{"text": "What is it?", "files": [file]}, 0, 1, 4, 6]}, timeout=60).json()
    events = httpx.get(f"{call}/{event['event_id']}", timeout=300).text
    assert events.startswith("event: error")
    assert "assistant" not in events


def test_too_large_a_file_is_refused(served: Served, tmp_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(bytes(9 * 2**20))
    with (tmp_path / "large.png").open("rb") as file:
        reply = httpx.post(f"{served.address}/gradio_api/upload", files={"files": file}, timeout=60)
    assert reply.status_code == 413
