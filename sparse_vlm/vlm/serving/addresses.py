"""Images of requests: data: URLs, and http(s) addresses if the server may fetch them."""

import asyncio
import base64
import binascii
import ipaddress
import socket
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

import httpx
from PIL import Image

from sparse_vlm.errors import UserError, one_line, unknown_choice
from sparse_vlm.image_files import decode_image

FETCHING = ("none", "public", "any")
MAX_BYTES = 64 * 2**20
MAX_REDIRECTS = 3


@dataclass(frozen=True)
class Addresses:
    """The addresses from which the server opens images.

    Args:
        fetch: http(s) addresses to fetch: "none"; "public": addresses on the internet, but not of this machine or its
            networks; "any".
        seconds: time limit for fetching one image.
        max_megapixels: limit per image.
    """

    fetch: str = "none"
    seconds: float = 10
    max_megapixels: float = 64

    def __post_init__(self) -> None:
        if self.fetch not in FETCHING:
            raise unknown_choice("--image_urls", self.fetch, FETCHING)
        for name, value in (("--fetch_seconds", self.seconds), ("--max_megapixels", self.max_megapixels)):
            if not value > 0:
                raise UserError(f"{name} must be positive, got {value:g}.")

    async def open(self, url: str, name: str) -> Image.Image:
        """Open the image at an address, as RGB. `name` refers to it in errors."""
        scheme = url.partition(":")[0].lower()
        if scheme == "data":
            data = decode_data_url(url, name)
        elif scheme in ("http", "https"):
            data = await self._fetch(url, name)
        else:
            also = "" if self.fetch == "none" else " or an http(s) address"
            raise UserError(f"The address of {name} must be a data: URL{also}, got {url[:60]!r}.")
        return await asyncio.to_thread(decode_image, data, name, self.max_megapixels)

    async def _fetch(self, url: str, name: str) -> bytes:
        if self.fetch == "none":
            raise UserError(
                f"This server does not fetch images: send {name} as a data: URL, or start the server with "
                "--image_urls public."
            )
        try:
            async with asyncio.timeout(self.seconds):
                return await self._follow(httpx.URL(url), name)
        except TimeoutError:
            raise UserError(f"{name} did not arrive from {url[:200]} within {self.seconds:g} seconds.") from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise UserError(f"{name} cannot be fetched from {url[:200]} ({one_line(error)}).") from error

    async def _follow(self, url: httpx.URL, name: str) -> bytes:
        # without proxies, which would connect to another address than the one that was checked
        async with httpx.AsyncClient(trust_env=False, timeout=self.seconds) as client:
            for _ in range(MAX_REDIRECTS + 1):
                async with client.stream(
                    "GET",
                    await self._checked(url, name),
                    headers={"Host": _host(url)},
                    extensions={"sni_hostname": url.host},
                ) as response:
                    if response.has_redirect_location:
                        url = url.join(response.headers["Location"])
                        continue
                    response.raise_for_status()
                    return await _read(response, name)
        raise UserError(f"{name}: the address redirects more than {MAX_REDIRECTS} times.")

    async def _checked(self, url: httpx.URL, name: str) -> httpx.URL:
        """Replace the host name by its IP address, so that the address that was checked is the one that is fetched."""
        if url.scheme not in ("http", "https") or not url.host:
            raise UserError(f"{name}: {str(url)[:200]} is not an http(s) address.")
        port = url.port or (443 if url.scheme == "https" else 80)
        found = await asyncio.get_running_loop().getaddrinfo(url.host, port, type=socket.SOCK_STREAM)
        found.sort(key=lambda entry: entry[0] != socket.AF_INET)  # IPv4 first: fewer servers listen on IPv6
        numbers = [str(entry[4][0]) for entry in found]
        if self.fetch != "any" and not all(_is_public(number) for number in numbers):
            raise UserError(
                f"{name}: {url.host} is not on the internet, and this server does not fetch from other networks."
            )
        return url.copy_with(host=numbers[0])


def decode_data_url(url: str, name: str) -> bytes:
    """Decode the bytes in a data: URL."""
    head, comma, body = url.partition(",")
    if not comma:
        raise UserError(f"The data: URL of {name} has no comma before its data.")
    try:
        data = unquote_to_bytes(body)  # base64 letters may be percent-encoded too
        if head.lower().replace(" ", "").endswith(";base64"):
            return base64.b64decode(b"".join(data.split()), validate=True)
    except UnicodeEncodeError as error:
        raise UserError(f"The data: URL of {name} is broken ({one_line(error)}).") from None
    except binascii.Error as error:
        raise UserError(f"The base64 data of {name} is broken ({error}).") from None
    return data


def _host(url: httpx.URL) -> str:
    return url.netloc.decode("ascii").rpartition("@")[2]


def _is_public(number: str) -> bool:
    address = ipaddress.ip_address(number.partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_global and not (mapped or address).is_multicast


async def _read(response: httpx.Response, name: str) -> bytes:
    data = bytearray()
    async for chunk in response.aiter_bytes():
        data += chunk
        if len(data) > MAX_BYTES:
            raise UserError(f"{name} is larger than {MAX_BYTES // 2**20} MiB.")
    return bytes(data)
