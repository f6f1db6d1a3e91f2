"""Refused requests, and the conversion of messages."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sparse_vlm.vlm.serving.messages import ImageAddress, ImagePart, RegionPart, TextPart, UserMessage, conversation
from tests.vlm.serving.conftest import QUESTION, Server, data_url, message

IMAGE: Any = message(data_url(Image.new("RGB", (8, 8))))["content"][0]
TEXT: Any = {"type": "text", "text": QUESTION}
REGION: Any = {"type": "region", "box": [0.5, 0, 1, 0.5]}


def counted(visual_tokens: Any) -> dict[str, Any]:
    """A request about an image with this number of visual tokens."""
    content = [IMAGE, TEXT]
    return {
        "messages": [{"role": "user", "content": content}], "mm_processor_kwargs": {"visual_tokens": visual_tokens}
    }  # fmt: skip


def with_regions(*boxes: Any) -> dict[str, Any]:
    """A request about regions of an image."""
    regions = [{"type": "region", "box": box} for box in boxes]
    return {"messages": [{"role": "user", "content": [IMAGE, *regions, TEXT]}]}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"max_tokens": 0}, "max_tokens: Input should be greater than or equal to 1, got 0."),
        ({"temperature": "hot"}, "temperature: Input should be a valid number, got 'hot'."),
        ({"messages": []}, "messages: List should have at least 1 item"),
        ({"messages": None}, "messages: Field required"),
        ({"messages": [{"role": "user", "content": " "}]}, "The question is empty."),
        ({"messages": [{"role": "tool", "content": "4"}]}, "'role'"),
        ({"messages": [{"role": "user", "content": "Q", "name": "Eve"}]}, "Unknown field 'name'."),
        ({"messages": [{"role": "user", "content": [{"type": "video_url"}]}]}, "'video_url'"),
        ({"messages": [{"role": "assistant", "content": "A"}]}, "The last message must be the user's"),
        ({"max_token": 5}, "Unknown field 'max_token'. Did you mean 'max_tokens'"),
        ({"n": 2}, "n 2 is not served"),
        ({"response_format": {"type": "json_object"}}, "response_format {'type': 'json_object'} is not served"),
        ({"tools": [{"type": "function"}]}, "tools are not served"),
        ({"frequency_penalty": 0.5}, "penalties are not served"),
        ({"top_logprobs": 2}, "top_logprobs needs logprobs true"),
        ({"stop": [""]}, "must not be empty"),
        ({"stream_options": {"include_usage": True}}, "stream_options needs stream true"),
        ({"messages": [message(None, "word " * 9000)]}, "more than the 2048 that the model takes"),
        ({"max_tokens": 100_000}, "more than the 2048 that the model takes"),
        ({"messages": [message("file:///etc/passwd")]}, "must be a data: URL"),
        ({"messages": [message("/etc/passwd")]}, "must be a data: URL"),
        ({"messages": [message("data:image/png;base64,&&")]}, "base64 data of image 1 is broken"),
        ({"messages": [message("data:image/png;base64,\ud800")]}, "data: URL of image 1 is broken"),
        ({"messages": [message(None, "half of \ud83d")]}, "half of a character"),
        ({"messages": [message("http://127.0.0.1:9/a.png")]}, "127.0.0.1 is not on the internet"),
        ({"messages": [message("http://[::ffff:10.0.0.1]/a.png")]}, "is not on the internet"),
        ({"messages": [message("http://localhost/a.png")]}, "localhost is not on the internet"),
        ({"messages": [message("data:,")] * 4}, "4 images, more than the limit of 3"),
        ({"user": {"id": 1}}, "user: Input should be a valid string, got {'id': 1}."),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages[0].content[0].text: Field required.",
        ),
        ({"text": {"format": "json"}}, "Unknown field 'text'."),
        ({"str": 1}, "Unknown field 'str'."),
        ({"messages": [{"role": "user", "content": [TEXT | {"int": 1}]}]}, "Unknown field 'int'. Choices: text, type."),
        ({"tools": [{"type": "function"}], "tool_choice": "auto"}, "or start the server with --ignore tools"),
        ({"tool_choice": "required"}, "tool_choice 'required' is not served"),
        ({"functions": [{"name": "f"}]}, "functions are not served"),
        ({"tools": [{"name": "x" * 999}]}, "tools is not served: tools are not served; send none, or tool_choice"),
        ({"store": True}, "store True is not served: answers are not stored."),
        ({"modalities": ["text", "audio"]}, "answers are text"),
        ({"reasoning_effort": "high"}, "reasoning_effort 'high' is not served"),
        ({"n": 2, "stream": True}, "n 2 is not served"),
        ({"top_k": 1.5}, "top_k: Input should be a valid integer"),
        ({"top_k": -2}, "top_k: Input should be greater than or equal to -1"),
        ({"min_p": 1.5}, "min_p: Input should be less than or equal to 1"),
        ({"repetition_penalty": 0}, "repetition_penalty: Input should be greater than 0"),
        ({"seed": 2**63}, "seed: Input should be less than"),
        ({"top_p": 0}, "top_p: Input should be greater than 0"),
        ({"temperature": True}, "temperature: Input should be a valid number, got True."),
        ({"messages": ["Q"]}, "messages[0]: Input should be a valid dictionary"),
        ({"messages": {"role": "user", "content": "Q"}}, "messages: Input should be a valid list"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content: Field required."),
        ({"messages": [{"role": "user", "content": []}]}, "The question is empty."),
        (
            {"messages": [{"role": "user", "content": [IMAGE | {"image_url": {"url": 1}}]}]},
            "content[0].image_url.url: ",
        ),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": "a"}]}, message(None)]}, "messages[0].tool_calls: "),
        ({"mm_processor_kwargs": {"visual_token": 4}}, "Unknown field 'visual_token'. Did you mean 'visual_tokens'"),
        ({"mm_processor_kwargs": {"num_crops": 4}}, "Unknown field 'num_crops'."),
        ({"mm_processor_kwargs": 16}, "mm_processor_kwargs: "),
        (counted(16.5), "mm_processor_kwargs.visual_tokens: Input should be a valid integer"),
        (counted("16"), "mm_processor_kwargs.visual_tokens: Input should be a valid integer"),
        (counted(True), "mm_processor_kwargs.visual_tokens: Input should be a valid integer"),
        (counted(0), "at least 1, got 0"),
        (counted(-1), "at least 1, got -1"),
        (counted([4, 4]), "There are 1 images but 2 numbers of visual tokens"),
        (counted([]), "There are 1 images but 0 numbers of visual tokens"),
        (counted(2040), "more than the 2048 that the model takes. Ask for fewer visual tokens"),
        (counted(2049), "An image of 2049 visual tokens exceeds the 2048 positions of the language model"),
        (counted(10**12), "at most 131072 visual tokens, got 1000000000000"),
        (with_regions([0.5, 0, 0.5, 1]), "A box lies inside the image"),
        (with_regions([0.6, 0, 0.5, 1]), "A box lies inside the image"),
        (with_regions([0, 0, 1, 1.01]), "A box lies inside the image"),
        (with_regions([0, 0, 1]), "A box is four numbers"),
        (with_regions("0,0,1,1"), "messages[0].content[1].box: Input should be a valid list, got '0,0,1,1'"),
        (with_regions(None), "messages[0].content[1].box: Field required"),
        (with_regions(["0", 0, 1, 1]), "Input should be a valid number, got '0'"),
        ({"messages": [{"role": "user", "content": [REGION, TEXT]}]}, "no <image> before it"),
        ({"messages": [{"role": "user", "content": [REGION, IMAGE, TEXT]}]}, "before the images of its message"),
        ({"messages": [{"role": "user", "content": [TEXT, REGION, IMAGE]}]}, "before the images of its message"),
        ({"messages": [{"role": "assistant", "content": [REGION]}, message(None)]}, "'region'"),
        ({"messages": [{"role": "user", "content": [IMAGE, REGION | {"size": 9}, TEXT]}]}, "Unknown field 'size'"),
        ({"messages": [{"role": "user", "content": [IMAGE, REGION]}]}, "The question is empty."),
    ],
)
def test_bad_requests_have_status_400_and_a_reason(server: Server, changes: dict[str, Any], sentence: str) -> None:
    status, reply = server.post({"model": "vlm", "messages": [message(None)], "max_tokens": 1} | changes)
    assert status == 400
    assert sentence in reply["error"]["message"]
    assert reply["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "changes",
    [
        {"tools": [{"type": "function"}], "tool_choice": "none"},
        {"tools": [], "tool_choice": "auto", "parallel_tool_calls": True, "functions": [], "function_call": "none"},
        {
            "n": 1,
            "response_format": {"type": "text"},
            "frequency_penalty": 0.0,
            "presence_penalty": 0,
            "logit_bias": {},
        },
        {"user": "Eve", "metadata": {"chat": "1"}, "safety_identifier": "a", "prompt_cache_key": "b", "store": False},
        {"modalities": ["text"], "service_tier": "auto", "verbosity": "medium", "reasoning_effort": "none"},
        {"temperature": None, "stop": None, "stream_options": None, "logprobs": None, "tools": None, "n": None},
        {"top_logprobs": 0, "logprobs": False, "stop": []},
        {"top_k": -1, "min_p": 0, "repetition_penalty": 1, "top_p": 1},
        {"temperature": 1e-40},
        {"temperature": 1, "top_k": 0, "seed": -1},
    ],
)
def test_values_without_effect_are_accepted(server: Server, changes: dict[str, Any]) -> None:
    status, reply = server.post({"model": "vlm", "messages": [message(None)], "max_tokens": 1} | changes)
    assert status == 200, reply


def test_forms_of_messages_that_clients_send(server: Server) -> None:
    url, answered = IMAGE["image_url"]["url"], {"role": "assistant", "content": "A shape."}
    plain = [{"role": "user", "content": [IMAGE, TEXT]}]
    expected = server.post({"model": "vlm", "messages": plain, "max_tokens": 3})[1]["choices"]
    for part in (
        {"type": "image_url", "image_url": url},
        *({"type": "image_url", "image_url": {"url": url, "detail": each}} for each in ("auto", "low", "high", None)),
    ):
        body = {"model": "vlm", "messages": [{"role": "user", "content": [part, TEXT]}], "max_tokens": 3}
        assert server.post(body)[1]["choices"] == expected
    instructions = [{"role": role, "content": "Be brief."} for role in ("system", "developer")]
    said = [server.post({"model": "vlm", "messages": [each, *plain], "max_tokens": 3})[1] for each in instructions]
    assert said[0]["choices"] == said[1]["choices"]
    for earlier in (answered, answered | {"content": None}, answered | {"content": ""}, answered | {"content": [TEXT]}):
        body = {"model": "vlm", "messages": [*plain, earlier, message(None)], "max_tokens": 1}
        assert server.post(body)[0] == 200


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"{not json", "The body is not valid JSON: Expecting property name"),
        (b"", "The body is not valid JSON: Expecting value"),
        (b"[1]", "The body must be a JSON object, got an array."),
        (b"null", "The body must be a JSON object, got null."),
        (b'"{}"', "The body must be a JSON object, got a string."),
        (b"\xff\xfe\xfd", "The body is not valid JSON: "),
        (b'{"model": "caf\xe9"}', "The body is not valid JSON: "),
        (b'{"temperature": NaN}', "The body is not valid JSON: NaN is not a number in JSON."),
        (b'{"model": "vlm", "messages": [{"role": "user", "content": "Q"}], "temperature": 1e999}', "a finite number"),
        (b'{"seed": ' + b"1" * 5000 + b"}", "The body is not valid JSON: "),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"messages": []}', "Field required."),
    ],
)
def test_invalid_bodies(server: Server, body: bytes, sentence: str) -> None:
    status, reply = server.post(body)
    assert (status, reply["error"]["type"]) == (400, "invalid_request_error")
    assert sentence in reply["error"]["message"]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
def test_other_content_types_are_refused(server: Server, kind: str) -> None:
    data = json.dumps({"model": "vlm", "messages": [message(None)], "max_tokens": 1}).encode()
    status, _, reply = server.send("POST", "/v1/chat/completions", data, {"Content-Type": kind})
    assert status == 415
    assert "must be application/json, got " in json.loads(reply)["error"]["message"]
    kinds = {"Content-Type": "Application/JSON; charset=utf-8"}
    assert server.send("POST", "/v1/chat/completions", data, kinds)[0] == 200


def test_a_text_that_cannot_fit_is_refused_before_it_is_tokenized(server: Server) -> None:
    status, reply = server.post({"model": "vlm", "messages": [message(None, "word " * 10**6)]})
    assert status == 400
    assert "5000000 characters, more than the 2048 tokens that the model takes can hold" in reply["error"]["message"]


def test_unknown_routes_and_methods(server: Server) -> None:
    for path in ("/load_model", "/reset", "/v1/completions", "/v1/embeddings", "/v1/responses", "/chat/completions"):
        status, reply = server.post({}, path)
        assert status == 404
        assert reply["error"]["message"].startswith(f"There is no route {path}. This server has GET /v1/models, ")
    for path in ("/docs", "/openapi.json", "/"):
        assert server.send("GET", path)[0] == 404
    for method in ("GET", "HEAD", "OPTIONS", "PUT", "DELETE"):
        status, headers, _ = server.send(method, "/v1/chat/completions")
        assert (status, headers["Allow"]) == (405, "POST")
    for path in ("/health", "/version", "/v1/models", "/v1/models/", "/v1/models/vlm"):
        status, _, reply = server.send("HEAD", path)
        assert (status, reply) == (200, b"")


def test_a_model_by_name(server: Server, vlm_dir: Path) -> None:
    (listed,) = json.loads(server.send("GET", "/v1/models")[2])["data"]
    assert json.loads(server.send("GET", "/v1/models/vlm")[2]) == listed
    assert json.loads(server.send("GET", f"/v1/models/{vlm_dir}")[2])["id"] == str(vlm_dir)
    asked = {"model": "another", "messages": [message(None)]}
    for status, reply in (server.post(asked), _read(server.send("GET", "/v1/models/another"))):
        assert (status, reply["error"]["code"]) == (404, "model_not_found")
        assert reply["error"]["message"] == "The model 'another' is not served here. This server has 'vlm'."
    assert json.loads(server.send("GET", "/version")[2]) == {"version": version("sparse-vlm")}


def _read(reply: tuple[int, Any, bytes]) -> tuple[int, Any]:
    return reply[0], json.loads(reply[2])


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [("ti", "it"), ("it", "it"), ("tiit", "iitt"), ("tit", "itt"), ("titit", "titit"), ("iti", "iti"), ("t", "t")],
)
def test_images_come_before_text_unless_text_separates_them(kinds: str, expected: str) -> None:
    image = ImagePart(type="image_url", image_url=ImageAddress(url="data:,"))
    parts = [image if kind == "i" else TextPart(type="text", text="t") for kind in kinds]
    turns, urls = conversation([UserMessage(role="user", content=parts)])
    assert "".join(part["type"][0] for part in turns[0]["content"]) == expected
    assert len(urls) == kinds.count("i")


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ("tir", "irt"),
        ("tirrt", "irrtt"),
        ("irirt", "irirt"),
        ("itrt", "itrt"),
        ("titr", "ittr"),
        ("irtit", "irtit"),
        ("rt", "rt"),
        ("trt", "trt"),
    ],
)
def test_regions_stay_behind_their_images(kinds: str, expected: str) -> None:
    part: dict[str, Any] = {
        "i": ImagePart(type="image_url", image_url=ImageAddress(url="data:,")),
        "t": TextPart(type="text", text="t"),
        "r": RegionPart(type="region", box=[0, 0, 1, 1]),
    }
    turns, _ = conversation([UserMessage(role="user", content=[part[kind] for kind in kinds])])
    assert "".join(each["type"][0] for each in turns[0]["content"]) == expected
