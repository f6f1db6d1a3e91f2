"""Messages of requests, and their conversion to turns of a chat template."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class Strict(BaseModel):
    """A model without type conversion, for which unknown fields are errors. `null` means that a field is absent."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _without_null(cls, data: Any) -> Any:
        return {name: value for name, value in data.items() if value is not None} if isinstance(data, dict) else data


class TextPart(Strict):
    """Text."""

    type: Literal["text"]
    text: str


class ImageAddress(Strict):
    """A data: URL, or an http(s) address if the server fetches those.

    `detail` has no effect: every image gets the number of visual tokens that mm_processor_kwargs sets.
    """

    url: str
    detail: Literal["auto", "low", "high", "original"] = "auto"


class ImagePart(Strict):
    """An image. Its address may also be given without the object around it, as LangChain does."""

    type: Literal["image_url"]
    image_url: ImageAddress

    @field_validator("image_url", mode="before")
    @classmethod
    def _as_object(cls, value: Any) -> Any:
        return {"url": value} if isinstance(value, str) else value


class RegionPart(Strict):
    """A box of the image before it, to look at more closely: (x1, y1, x2, y2), [0, 1] from edge to edge."""

    type: Literal["region"]
    box: list[float]


Part: TypeAlias = Annotated[TextPart | ImagePart | RegionPart, Field(discriminator="type")]


class SystemMessage(Strict):
    """Instructions before the conversation."""

    role: Literal["system", "developer"]
    content: str | list[TextPart]


class UserMessage(Strict):
    """A question, with images and regions anywhere in it."""

    role: Literal["user"]
    content: str | list[Part]


class AssistantMessage(Strict):
    """An earlier answer. It may be empty, or the message of a response as it was, with empty lists."""

    role: Literal["assistant"]
    content: str | list[TextPart] = ""
    tool_calls: list[Any] = Field(default_factory=list, max_length=0)
    annotations: list[Any] = Field(default_factory=list, max_length=0)


Message: TypeAlias = Annotated[SystemMessage | UserMessage | AssistantMessage, Field(discriminator="role")]


def conversation(messages: Sequence[Message]) -> tuple[list[dict[str, Any]], list[str]]:
    """Convert messages for a chat template. Returns the turns and the URLs of their images, in order.

    The images of a turn come before its text, as in training, unless there is text between them. Regions that follow an
    image move with it.
    """
    turns, urls = [], list[str]()
    for message in messages:
        parts: list[dict[str, Any]] = []
        for part in [] if isinstance(message.content, str) else message.content:
            if part.type == "image_url":
                parts.append({"type": "image"})
                urls.append(part.image_url.url)
            else:
                parts.append(part.model_dump())
        if isinstance(message.content, str):
            parts.append({"type": "text", "text": message.content})
        turns.append({"role": "system" if message.role == "developer" else message.role, "content": _ordered(parts)})
    return turns, urls


def _ordered(parts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Move the images of a turn, with the regions that follow them, before its text, unless they are apart.

    A region of an earlier turn's image stays where it is.
    """
    kinds = "".join(part["type"][0] for part in parts)
    texts_and_images = kinds.replace("r", "")
    if len(texts_and_images.strip("t").split("t")) > 1 or kinds.replace("t", "").startswith("r"):
        return list(parts)
    first: list[dict[str, Any]] = []
    rest: list[dict[str, Any]] = []
    place = rest
    for part in parts:
        if part["type"] != "region":
            place = first if part["type"] == "image" else rest
        place.append(part)
    return first + rest
