"""Requests that chat pages sent, recorded between them and `sparse-vlm serve` on 2026-11-28.

- open_webui.json: open-webui 0.12.4 (PyPI), its page in Chromium: an image with a question, a second question. Tools
  after the first are left out.
- librechat.json: @librechat/agents 3.9.2 (npm), which LibreChat calls, with the settings that LibreChat's
  packages/api/src/agents/run.ts makes for a custom endpoint: an image with a question, the title, a second question.

Answers are cut after six tokens, so that the tests are fast.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.vlm.serving.conftest import Server

RECORDED = Path(__file__).parent / "recorded"
PAGES = ("open_webui", "librechat")


def replay(server: Server, page: str) -> list[str]:
    """Send the recorded requests of a page and return the answers."""
    answers = []
    for request in json.loads((RECORDED / f"{page}.json").read_text(encoding="utf-8")):
        body = request["body"] and json.dumps(request["body"] | {"max_tokens": 6}).encode()
        status, headers, reply = server.send(request["method"], request["path"], body, request["headers"])
        assert status == 200, reply
        if body is None:
            assert [model["id"] for model in json.loads(reply)["data"]] == ["model"]
        elif request["body"]["stream"]:
            assert headers["Content-Type"].startswith("text/event-stream")
            answers.append(streamed(reply.decode()))
        else:
            answers.append(json.loads(reply)["choices"][0]["message"]["content"])
    return answers


def streamed(text: str) -> str:
    """The answer in a stream of events."""
    *events, done, end = text.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    choices = [json.loads(event.removeprefix("data: "))["choices"][0] for event in events]
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert [choice["finish_reason"] for choice in choices[-2:]] == [None, "length"]
    return "".join(choice["delta"].get("content", "") for choice in choices)


def test_two_chat_pages_at_once(strict: Server) -> None:
    alone = [replay(strict, page) for page in PAGES]
    assert [len(answers) for answers in alone] == [6, 3]
    assert all(any(answers) for answers in alone)
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda page: replay(strict, page), PAGES)) == alone


def test_the_tools_of_open_webui_are_refused_with_advice(server: Server) -> None:
    """Its page shows the sentence in place of an answer. Without `--ignore tools` they are refused."""
    requests: list[Any] = json.loads((RECORDED / "open_webui.json").read_text(encoding="utf-8"))
    (first, *_) = [request["body"] for request in requests if request["body"] and "tools" in request["body"]]
    status, reply = server.post(first | {"model": "vlm"})
    assert status == 400
    assert "or start the server with --ignore tools" in reply["error"]["message"]
