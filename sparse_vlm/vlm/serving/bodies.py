"""Bodies of requests: JSON objects of limited size."""

import json
from typing import Any

from starlette.requests import Request

from sparse_vlm.errors import UserError, one_line
from sparse_vlm.vlm.serving.refusals import RefusedError


async def read_object(request: Request, max_megabytes: float) -> dict[str, Any]:
    """Read the JSON object in a request's body.

    Raises:
        RefusedError: the body is too large, or has another content type. A web page of another site can send some of
            these without the browser asking the server.
        UserError: the body is not a JSON object.
    """
    kind = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise RefusedError(415, f"The Content-Type of a request must be application/json, got {kind!r}.")
    value = _parse(await _read(request, max_megabytes))
    if not isinstance(value, dict):
        raise UserError(f"The body must be a JSON object, got {_name(value)}.")
    return value


async def _read(request: Request, max_megabytes: float) -> bytes:
    limit, size, data = int(max_megabytes * 10**6), 0, bytearray()
    async for chunk in request.stream():
        size += len(chunk)
        if size <= limit:
            data += chunk
        else:  # drop the rest, since most clients read the response only after they have sent everything
            data.clear()
    if size > limit:
        raise RefusedError(
            413,
            f"The request has {size / 10**6:.1f} MB, more than the {max_megabytes:g} MB that this server takes. Send "
            "fewer or smaller images, or start the server with a larger --max_megabytes.",
        )
    return bytes(data)


def _parse(data: bytes) -> Any:
    try:
        return json.loads(data, parse_constant=_refuse_constant)
    except RecursionError:
        raise UserError("The body is not valid JSON: it is nested too deeply.") from None
    except ValueError as error:  # JSONDecodeError, UnicodeDecodeError, and numbers of thousands of digits
        raise UserError(f"The body is not valid JSON: {one_line(error).rstrip('.')}.") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number in JSON")


def _name(value: Any) -> str:
    names = {list: "an array", str: "a string", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")
