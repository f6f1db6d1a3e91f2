"""Requests in OpenAI's format. Nothing in a request is ignored.

An unknown field, a value of another type, and a value that is not supported are refused with a one-line error. `null`
means that the field is absent.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sparse_vlm.errors import UserError, unknown_choice
from sparse_vlm.vlm.decoding import Decoding
from sparse_vlm.vlm.serving.generation import Settings

# Fields of OpenAI's API that are not supported: the values that have no effect, and advice for all others.
NOT_SERVED: dict[str, tuple[tuple[Any, ...], str]] = {
    "n": ((1,), "each request gets one answer; send it again"),
    "tools": (([],), "tools are not served"),
    "tool_choice": (("none", "auto"), "tools are not served"),
    "response_format": (({"type": "text"},), "answers are plain text; ask for the format in the question"),
    "frequency_penalty": ((0,), "penalties are not served"),
    "presence_penalty": ((0,), "penalties are not served"),
    "logit_bias": (({},), "biases of the logits are not served"),
}


class Strict(BaseModel):
    """A model without type conversion, for which unknown fields are errors."""

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
    """A data: URL, or an http(s) address if the server fetches those."""

    url: str
    detail: Literal["auto"] = "auto"  # mm_processor_kwargs sets the number of visual tokens


class ImagePart(Strict):
    """An image."""

    type: Literal["image_url"]
    image_url: ImageAddress


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
    """An earlier answer."""

    role: Literal["assistant"]
    content: str | list[TextPart]


Message: TypeAlias = Annotated[SystemMessage | UserMessage | AssistantMessage, Field(discriminator="role")]


class StreamOptions(Strict):
    """Options of streamed answers. `include_usage` adds a last chunk with the number of tokens."""

    include_usage: bool = False


class ProcessorOptions(Strict):
    """vLLM's field for arguments of the processor. `visual_tokens`: a number for all images, or one for each."""

    visual_tokens: int | list[int] | None = None


class ChatRequest(Strict):
    """The body of POST /v1/chat/completions."""

    model: str
    messages: list[Message] = Field(min_length=1)
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=0, lt=2**63)
    stop: str | list[str] = Field(default_factory=list, max_length=1000)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=20)
    mm_processor_kwargs: ProcessorOptions = Field(default_factory=ProcessorOptions)
    user: str | None = None  # accepted without effect
    n: int | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    response_format: Any = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, Any] | None = None

    def check(self) -> None:
        """Raise UserError if the request is contradictory or asks for something that is not supported."""
        for name, (harmless, advice) in NOT_SERVED.items():
            value = getattr(self, name)
            if value is not None and value not in harmless:
                raise UserError(f"{name} {value!r} is not served: {advice}.")
        if self.max_tokens and self.max_completion_tokens and self.max_tokens != self.max_completion_tokens:
            raise UserError("max_tokens and max_completion_tokens have the same meaning; give one of them.")
        if self.top_logprobs is not None and not self.logprobs:
            raise UserError("top_logprobs needs logprobs true.")
        if self.stream_options is not None and not self.stream:
            raise UserError("stream_options needs stream true.")
        if not all(self.stops()):
            raise UserError("A stop string must not be empty.")
        if self.messages[-1].role != "user":
            raise UserError(f"The last message must be the user's, got the role {self.messages[-1].role!r}.")

    def stops(self) -> list[str]:
        """The strings that end an answer."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop)

    def length(self) -> int | None:
        """The maximum number of tokens of the answer, if the request sets it."""
        return self.max_completion_tokens or self.max_tokens

    def settings(self, length: int) -> Settings:
        """The settings of an answer of at most `length` tokens.

        Without a temperature answers are greedy, as everywhere in this library, unless `top_p` asks for sampling.
        """
        sampled = self.top_p is not None and self.top_p < 1
        temperature = self.temperature if self.temperature is not None else float(sampled)
        top_logprobs = (self.top_logprobs or 0) if self.logprobs else None
        return Settings(length, Decoding(temperature, self.top_p or 1.0), self.seed, self.stops(), top_logprobs)


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


def validation_message(errors: Sequence[Any]) -> str:
    """Describe the deepest of pydantic's errors in one sentence: a union reports an error for every alternative."""
    error = max(errors, key=lambda error: len(error["loc"]))
    if error["type"] == "json_invalid":
        return f"The body is not valid JSON: {error['ctx']['error']}."
    names = [name for name in error["loc"] if name != "body" and not _is_tag(str(name))]
    where = "".join(f"[{name}]" if isinstance(name, int) else f".{name}" for name in names).lstrip(".") or "the body"
    if error["type"] == "extra_forbidden":
        holder = _model_at(error["loc"])
        return (
            str(unknown_choice("field", str(names[-1]), holder.model_fields)) if holder else f"Unknown field {where}."
        )
    return f"{where}: {error['msg']}, got {_short(error['input'])}."


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


def _is_tag(name: str) -> bool:
    """Return whether a part of an error's location is pydantic's name for an alternative of a union."""
    alternatives = ("str", "int", "user", "assistant", "system", "developer", "text", "region")
    return name in alternatives or name.startswith("list[")


def _model_at(location: Sequence[Any]) -> type[Strict] | None:
    """Return the model that has no field of the name at the end of `location`."""
    above = [name for name in location[:-1] if name != "body"]
    if not above:
        return ChatRequest
    if above[-2:] == ["image_url", "image_url"]:  # the alternative, then its field
        return ImageAddress
    return MODELS.get(str(above[-1]))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}…"
