"""Requests that are refused with a status other than 400."""

from collections.abc import Mapping

from sparse_vlm.errors import UserError


class RefusedError(UserError):
    """A refused request.

    Args:
        status: the HTTP status.
        message: a full sentence with the reason.
        code: OpenAI's name for the reason, if it has one.
        headers: further headers of the response.
    """

    def __init__(
        self, status: int, message: str, code: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.headers = status, code, headers
