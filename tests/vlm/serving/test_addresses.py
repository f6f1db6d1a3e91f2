"""Images of requests: data: URLs, and http(s) addresses, allowed and refused."""

import asyncio
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sparse_vlm.errors import UserError
from sparse_vlm.vlm.chat import answer
from sparse_vlm.vlm.serving.addresses import Addresses, decode_data_url
from tests.vlm.conftest import Loaded
from tests.vlm.serving.conftest import QUESTION, Server, message, png


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "10.1.2.3", "169.254.169.254", "[::1]", "[fd00::1]", "0.0.0.0", "2130706433", "100.64.0.1"]
)
def test_addresses_of_internal_networks_are_not_fetched(host: str) -> None:
    with pytest.raises(UserError, match="is not on the internet"):
        asyncio.run(Addresses("public").open(f"http://{host}/a.png", "image 1"))


def test_a_host_name_of_an_internal_network_is_not_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def inside(host: Any, port: Any, *unused: Any, **options: Any) -> Any:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (number, port)) for number in ("8.8.8.8", "192.168.0.9")]

    monkeypatch.setattr(socket, "getaddrinfo", inside)
    with pytest.raises(UserError, match=r"example\.org is not on the internet"):
        asyncio.run(Addresses("public").open("https://example.org/a.png", "image 1"))


def test_nothing_is_fetched_by_default() -> None:
    with pytest.raises(UserError, match="does not fetch images: send image 1 as a data: URL"):
        asyncio.run(Addresses().open("https://example.org/a.png", "image 1"))


def test_data_urls() -> None:
    assert decode_data_url("data:image/png;base64,aGkh\n", "image 1") == b"hi!"
    assert decode_data_url("data:,a%20b", "image 1") == b"a b"
    assert decode_data_url("data:image/png; BASE64,aGkh%0A", "image 1") == b"hi!"
    assert decode_data_url("data:;base64,%2F%2B%2f%3D", "image 1") == decode_data_url("data:;base64,/+/=", "image 1")
    for url, sentence in (
        ("data:image/png;base64", "no comma"),
        ("data:;base64,a", "is broken"),
        ("data:;base64,aGkhé", "is broken"),
        ("data:;base64,aGkh\ud800", "is broken"),
        ("data:,\ud800", "is broken"),
    ):
        with pytest.raises(UserError, match=sentence):
            decode_data_url(url, "image 1")


def test_too_many_pixels() -> None:
    black = (
        "data:image/gif;base64,R0lGODlh6APoA4AAAAAAAP///ywAAAAA6APoAwACAkQBADs="  # 1000 × 1000 according to its header
    )
    with pytest.raises(UserError, match=r"it has 1000×1000 pixels, more than 0\.5 megapixels"):
        asyncio.run(Addresses(max_megapixels=0.5).open(black, "image 1"))


class _Files(BaseHTTPRequestHandler):
    image = b""

    def do_GET(self) -> None:
        if self.path == "/slow":
            time.sleep(3)
            return
        if self.path == "/away":
            self.send_response(302)
            self.send_header("Location", "/image.png")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200 if self.path == "/image.png" else 404)
        self.send_header("Content-Length", str(len(self.image)))
        self.end_headers()
        self.wfile.write(self.image)

    def log_message(self, *unused: Any) -> None:
        pass


@pytest.mark.slow
def test_addresses_are_fetched_if_allowed(
    vlm_dir: Path, vlm: Loaded, images: list[Image.Image], tmp_path: Path
) -> None:
    _Files.image = png(images[0])
    files = ThreadingHTTPServer(("127.0.0.1", 0), _Files)
    threading.Thread(target=files.serve_forever, daemon=True).start()
    root = f"http://localhost:{files.server_port}"
    options = ("--image_urls", "any", "--fetch_seconds", "1", "--served_name", "eyes")
    server = Server(vlm_dir, tmp_path / "log", *options)
    try:
        body: dict[str, Any] = {"model": "eyes", "max_tokens": 6}
        for path in ("image.png", "away"):
            status, reply = server.post(body | {"messages": [message(f"{root}/{path}")]})
            assert status == 200, reply
            said = reply["choices"][0]["message"]["content"].strip()
            assert said == answer(*vlm, images[0], QUESTION, max_new_tokens=6)
        for path, sentence in (("slow", "within 1 seconds"), ("none", "404")):
            status, reply = server.post(body | {"messages": [message(f"{root}/{path}")]})
            assert status == 400
            assert sentence in reply["error"]["message"]
    finally:
        server.close()
        files.shutdown()
        files.server_close()
