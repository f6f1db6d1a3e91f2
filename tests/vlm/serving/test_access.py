"""Who may use the API, and the limits on requests."""

import json
from contextlib import ExitStack
from typing import Any

import pytest

from sparse_vlm.errors import UserError
from sparse_vlm.vlm.serving.access import Access
from tests.vlm.serving.conftest import SITE, Server, message

JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"max_megabytes": 0}, "--max_megabytes must be positive, got 0."),
        ({"max_megabytes": float("nan")}, "--max_megabytes must be positive, got nan."),
        ({"api_key": ""}, "The API key must consist of ASCII letters"),
        ({"api_key": "a b"}, "The API key must consist of ASCII letters"),
        ({"api_key": "clé"}, "The API key must consist of ASCII letters"),
        ({"origins": ["localhost:3000"]}, "--allow_origin must be * or look like http://localhost:3000"),
        ({"origins": [f"{SITE}/"]}, f"got '{SITE}/'."),
        ({"ignored": ["messages"]}, "--ignore messages: the server needs this field."),
    ],
)
def test_bad_options(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as error:
        Access(**options)
    assert sentence in str(error.value)


def ask(server: Server, **fields: Any) -> tuple[int, Any, Any]:
    """Send a request with the key. Returns status, headers and body of the response."""
    body = {"model": "vlm", "messages": [message(None)], "max_tokens": 1} | fields
    headers = JSON | {"Authorization": "Bearer sk-1"}
    status, head, reply = server.send("POST", "/v1/chat/completions", json.dumps(body).encode(), headers)
    return status, head, json.loads(reply)


def test_the_api_key(strict: Server) -> None:
    import openai

    options: Any = {"base_url": f"{strict.root}/v1", "max_retries": 0}
    with openai.OpenAI(api_key="sk-1", **options) as client:
        assert client.models.list().data[0].id == "model"
    with openai.OpenAI(api_key="sk-2", **options) as client, pytest.raises(openai.AuthenticationError) as refused:
        client.models.list()
    assert refused.value.code == "invalid_api_key"
    for header in ({}, {"Authorization": "sk"}, {"Authorization": "Basic c2stMQ=="}, {"Authorization": "Bearer clé"}):
        for path in ("/v1/models", "/v1/models/vlm"):
            status, headers, reply = strict.send("GET", path, headers=header)
            assert (status, headers["WWW-Authenticate"]) == (401, "Bearer")
            assert "Authorization: Bearer KEY" in json.loads(reply)["error"]["message"]
        assert strict.send("POST", "/v1/chat/completions", b"{}", JSON | header)[0] == 401
    assert strict.send("GET", "/health")[0] == 200


def test_pages_of_allowed_sites_may_use_the_api(strict: Server) -> None:
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    status, headers, _ = strict.send("OPTIONS", "/v1/chat/completions", headers={"Origin": SITE} | asks)
    assert (status, headers["Access-Control-Allow-Origin"]) == (200, SITE)
    assert "authorization" in headers["Access-Control-Allow-Headers"].lower()
    key = {"Authorization": "Bearer sk-1"}
    for header, expected in ((key, 200), ({}, 401)):  # the page may read errors too
        status, headers, _ = strict.send("GET", "/v1/models", headers={"Origin": SITE} | header)
        assert (status, headers["Access-Control-Allow-Origin"]) == (expected, SITE)
    _, headers, _ = strict.send("GET", "/v1/models", headers={"Origin": "http://evil.example"} | key)
    assert headers["Access-Control-Allow-Origin"] is None


def test_ignored_fields(strict: Server) -> None:
    assert ask(strict, tools=[{"type": "function", "function": {"name": "f"}}], cache_prompt=True)[0] == 200
    status, _, reply = ask(strict, tool_choice="required")
    assert (status, "tools are not served" in reply["error"]["message"]) == (400, True)


def test_large_requests(strict: Server) -> None:
    status, _, reply = ask(strict, user="x" * 10**6)
    assert status == 413
    assert reply["error"]["message"].startswith("The request has 1.0 MB, more than the 0.1 MB that this server takes.")
    assert ask(strict)[0] == 200


def test_further_requests_are_refused_while_many_wait(strict: Server) -> None:
    """A client that disconnects makes room, whether its answer is streamed or not."""
    import httpx

    body = {"model": "vlm", "messages": [message(None)], "max_tokens": 1900}
    options: Any = {"headers": {"Authorization": "Bearer sk-1"}, "timeout": 60}
    with ExitStack() as stack:
        streams = []  # httpx closes a connection with the iterator over its lines
        for _ in range(2):
            request = httpx.stream(
                "POST", f"{strict.root}/v1/chat/completions", json=body | {"stream": True}, **options
            )
            streams.append(stack.enter_context(request).iter_lines())
            next(streams[-1])
        status, headers, reply = ask(strict)
        assert (status, headers["Retry-After"], reply["error"]["type"]) == (503, "1", "server_error")
        assert "answers or queues 2 requests already" in reply["error"]["message"]
    for _ in range(2):
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{strict.root}/v1/chat/completions", json=body, **options | {"timeout": 0.3})
    import openai

    with openai.OpenAI(base_url=f"{strict.root}/v1", api_key="sk-1", max_retries=5) as client:
        reply = client.chat.completions.create(model="vlm", messages=[message(None)], max_tokens=1)
    assert reply.usage.completion_tokens == 1
