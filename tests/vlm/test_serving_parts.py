"""Parts of the server without a process: addresses that may not be fetched, and text that is held back."""

import asyncio
import socket
from threading import Event
from typing import Any

import pytest

from sparse_vlm.errors import UserError
from sparse_vlm.vlm.chat import encode_prompt
from sparse_vlm.vlm.serving.addresses import Addresses, decode_data_url
from sparse_vlm.vlm.serving.app import conversation
from sparse_vlm.vlm.serving.generation import Piece, Settings, finish_reason, generate
from sparse_vlm.vlm.serving.protocol import ImageAddress, ImagePart, TextPart, UserMessage
from tests.vlm.conftest import Loaded


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "10.1.2.3", "169.254.169.254", "[::1]", "[fd00::1]", "0.0.0.0", "2130706433", "100.64.0.1"]
)
def test_inner_addresses_are_not_fetched(host: str) -> None:
    with pytest.raises(UserError, match="is not on the internet"):
        asyncio.run(Addresses("public").open(f"http://{host}/a.png", "image 1"))


def test_a_name_that_leads_inside_is_not_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def inside(host: Any, port: Any, *unused: Any, **options: Any) -> Any:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (number, port)) for number in ("8.8.8.8", "192.168.0.9")]

    monkeypatch.setattr(socket, "getaddrinfo", inside)
    with pytest.raises(UserError, match=r"example\.org is not on the internet"):
        asyncio.run(Addresses("public").open("https://example.org/a.png", "image 1"))


def test_nothing_is_fetched_by_default() -> None:
    with pytest.raises(UserError, match="fetches no addresses: send image 1 as a data: URL"):
        asyncio.run(Addresses().open("https://example.org/a.png", "image 1"))


def test_data_urls() -> None:
    assert decode_data_url("data:image/png;base64,aGkh\n", "image 1") == b"hi!"
    assert decode_data_url("data:,a%20b", "image 1") == b"a b"
    assert decode_data_url("data:image/png; BASE64,aGkh%0A", "image 1") == b"hi!"
    assert decode_data_url("data:;base64,%2F%2B%2f%3D", "image 1") == decode_data_url("data:;base64,/+/=", "image 1")
    for url, sentence in (
        ("data:image/png;base64", "no comma"),
        ("data:;base64,a", "are broken"),
        ("data:;base64,aGkhé", "are broken"),
        ("data:;base64,aGkh\ud800", "is broken"),
        ("data:,\ud800", "is broken"),
    ):
        with pytest.raises(UserError, match=sentence):
            decode_data_url(url, "image 1")


def test_too_many_pixels() -> None:
    black = "data:image/gif;base64,R0lGODlh6APoA4AAAAAAAP///ywAAAAA6APoAwACAkQBADs="  # its head says 1000 × 1000
    with pytest.raises(UserError, match=r"it has 1000×1000 pixels, more than 0\.5 megapixels"):
        asyncio.run(Addresses(max_megapixels=0.5).open(black, "image 1"))


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [("ti", "it"), ("it", "it"), ("tiit", "iitt"), ("tit", "itt"), ("titit", "titit"), ("iti", "iti"), ("t", "t")],
)
def test_images_stand_before_the_words_unless_words_stand_between(kinds: str, expected: str) -> None:
    image = ImagePart(type="image_url", image_url=ImageAddress(url="data:,"))
    parts = [image if kind == "i" else TextPart(type="text", text="t") for kind in kinds]
    turns, urls = conversation([UserMessage(role="user", content=parts)])
    assert "".join(part["type"][0] for part in turns[0]["content"]) == expected
    assert len(urls) == kinds.count("i")


def test_what_may_become_a_stop_string_is_held_back_until_it_is_clear(vlm: Loaded) -> None:
    model, processor = vlm
    inputs = encode_prompt(processor, None, "What is shown?")
    whole: list[Piece] = []
    answer = generate(model, processor.tokenizer, inputs, Settings(12), whole.append, Event())
    text = "".join(piece.text for piece in whole)
    assert text == answer.said
    for size in range(2, 10):
        for stop, ends in ((text[4 : 4 + size], True), (text[4 : 4 + size - 1] + "§", False), (text[-2:] + "§", False)):
            pieces: list[Piece] = []
            found = generate(model, processor.tokenizer, inputs, Settings(12, stops=[stop]), pieces.append, Event())
            said = "".join(piece.text for piece in pieces)
            assert said == (text[: text.index(stop)] if ends else text)
            assert finish_reason(found, model) == ("stop" if ends else "length")
            assert not ends or len(found.ids) < 12


def test_an_abandoned_answer_ends_within_a_token(vlm: Loaded) -> None:
    abandoned = Event()
    inputs = encode_prompt(vlm[1], None, "What is shown?")
    answer = generate(vlm[0], vlm[1].tokenizer, inputs, Settings(500), lambda piece: abandoned.set(), abandoned)
    assert len(answer.ids) <= 2
