"""Fields of a request → the request, or one sentence on what is wrong with them."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from sparse_vlm.errors import UserError, short, unknown_choice
from sparse_vlm.vlm.serving.messages import (
    AssistantMessage,
    ImageAddress,
    ImagePart,
    RegionPart,
    Strict,
    SystemMessage,
    TextPart,
    UserMessage,
)
from sparse_vlm.vlm.serving.requests import ChatRequest, ProcessorOptions, StreamOptions


def read_request(fields: Mapping[str, Any], ignored: Collection[str] = ()) -> ChatRequest:
    """Check the fields of a request.

    Args:
        fields: the body of the request.
        ignored: fields to drop, whatever their values.
    """
    try:
        request = ChatRequest.model_validate({name: value for name, value in fields.items() if name not in ignored})
    except ValidationError as error:
        raise UserError(_describe(error.errors(include_url=False))) from None
    request.check()
    return request


def _describe(errors: Sequence[Any]) -> str:
    """Describe the deepest of pydantic's errors in one sentence: a union reports an error for every alternative."""
    error = max(errors, key=lambda error: len(error["loc"]))
    where = _where(error["loc"])
    if error["type"] == "extra_forbidden":
        if (holder := _model_at(error["loc"])) is None:
            return f"Unknown field {where!r}."
        return str(unknown_choice("field", str(error["loc"][-1]), holder.model_fields))
    if error["type"] == "missing":
        return f"{where}: {error['msg']}."
    return f"{where}: {error['msg']}, got {short(error['input'])}."


MODELS: dict[str, type[Strict]] = {
    "text": TextPart,
    "image_url": ImagePart,
    "region": RegionPart,
    "stream_options": StreamOptions,
    "mm_processor_kwargs": ProcessorOptions,
    "system": SystemMessage,
    "developer": SystemMessage,
    "user": UserMessage,
    "assistant": AssistantMessage,
}


def _where(location: Sequence[str | int]) -> str:
    """Spell an error's location, e.g. "messages[0].content", without pydantic's names for alternatives."""
    where = ""
    for before, name in zip([None, *location], location, strict=False):
        if isinstance(name, int):
            where += f"[{name}]"
        elif not (isinstance(before, int) or name in ("str", "int") or name.startswith("list[")):
            where += f".{name}"
    return where.lstrip(".")


def _model_at(location: Sequence[Any]) -> type[Strict] | None:
    """Return the model that has no field of the name at the end of `location`."""
    above = list(location[:-1])
    if not above:
        return ChatRequest
    if above[-2:] == ["image_url", "image_url"]:  # the alternative, then its field
        return ImageAddress
    return MODELS.get(str(above[-1]))
