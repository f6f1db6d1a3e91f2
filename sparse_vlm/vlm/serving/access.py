"""Who may use the API, and what requests may contain."""

import re
import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from sparse_vlm.errors import UserError
from sparse_vlm.vlm.serving.addresses import Addresses
from sparse_vlm.vlm.serving.refusals import RefusedError

NEEDED = ("model", "messages", "stream")  # fields of a request


@dataclass(frozen=True)
class Access:
    """Who may use the API, and what requests may contain.

    Args:
        addresses: where images may come from.
        max_images: limit per request.
        max_megabytes: limit per request.
        api_key: the key that requests must carry; None: none.
        origins: web sites whose pages may use the API, e.g. "http://localhost:3000"; "*": all.
        ignored: fields of requests to ignore, whatever their values.
    """

    addresses: Addresses = field(default_factory=Addresses)
    max_images: int = 16
    max_megabytes: float = 100
    api_key: str | None = None
    origins: Sequence[str] = ()
    ignored: Collection[str] = ()

    def __post_init__(self) -> None:
        if self.max_images < 1:
            raise UserError(f"--max_images must be 1 or more, got {self.max_images}.")
        if not self.max_megabytes > 0:
            raise UserError(f"--max_megabytes must be positive, got {self.max_megabytes:g}.")
        if self.api_key is not None and not re.fullmatch("[!-~]+", self.api_key):  # what HTTP headers can carry
            raise UserError("The API key must consist of ASCII letters, digits and signs, without spaces.")
        for origin in self.origins:
            if not re.fullmatch(r"\*|https?://[^/\s]+", origin):
                raise UserError(f"--allow_origin must be * or look like http://localhost:3000, got {origin!r}.")
        for name in self.ignored:
            if name in NEEDED:
                raise UserError(f"--ignore {name}: the server needs this field.")

    def check_key(self, header: str) -> None:
        """Raise RefusedError if the header Authorization of a request does not carry the API key."""
        given = header.removeprefix("Bearer ").encode()
        if self.api_key is not None and not secrets.compare_digest(given, self.api_key.encode()):
            message = "This server needs its API key in the header Authorization: Bearer KEY."
            raise RefusedError(401, message, "invalid_api_key", {"WWW-Authenticate": "Bearer"})
