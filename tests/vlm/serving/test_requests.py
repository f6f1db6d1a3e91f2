"""Refused requests, and the conversion of messages."""

import urllib.error
import urllib.request
from typing import Any

import pytest
from PIL import Image

from sparse_vlm.vlm.serving.requests import ImageAddress, ImagePart, RegionPart, TextPart, UserMessage, conversation
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
        ({"model": "another"}, "The model 'another' is not served here. This server has 'vlm'."),
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


def test_invalid_bodies_and_unknown_routes(server: Server) -> None:
    status, reply = server.post(b"{not json")
    assert status == 400
    assert "not valid JSON" in reply["error"]["message"]
    for path in ("/load_model", "/reset", "/v1/completions", "/docs", "/openapi.json"):
        assert server.post({}, path)[0] == 404
    with pytest.raises(urllib.error.HTTPError, match="405") as refused:
        urllib.request.urlopen(f"{server.root}/v1/chat/completions")
    refused.value.close()


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
