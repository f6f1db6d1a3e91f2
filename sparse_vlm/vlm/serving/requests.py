"""Requests in OpenAI's format. Nothing in a request is ignored, unless the server was told to ignore a field.

An unknown field, a value of another type, and a value that is not supported are refused with a one-line error. `null`
means that the field is absent.
"""

from typing import Any

from pydantic import Field

from sparse_vlm.errors import UserError, short
from sparse_vlm.vlm.decoding import Decoding
from sparse_vlm.vlm.serving.generation import Settings
from sparse_vlm.vlm.serving.messages import Message, Strict

NO_TOOLS = 'tools are not served; send none, or tool_choice "none", or start the server with --ignore tools'
# Fields of OpenAI's API that are not supported: the values that have no effect, and advice for all others.
NOT_SERVED: dict[str, tuple[tuple[Any, ...], str]] = {
    "n": ((1,), "each request gets one answer; send it again"),
    "tools": (([],), NO_TOOLS),
    "tool_choice": (("none", "auto"), "tools are not served"),
    "parallel_tool_calls": ((True, False), "tools are not served"),
    "functions": (([],), "functions are not served"),
    "function_call": (("none", "auto"), "functions are not served"),
    "response_format": (({"type": "text"},), "answers are plain text; ask for the format in the question"),
    "frequency_penalty": ((0,), "penalties are not served, except for repetition_penalty"),
    "presence_penalty": ((0,), "penalties are not served, except for repetition_penalty"),
    "logit_bias": (({},), "biases of the logits are not served"),
    "modalities": ((["text"],), 'answers are text, so send ["text"]'),
    "reasoning_effort": (("none",), "the effort cannot be chosen"),
    "verbosity": (("medium",), "ask for a short or a long answer in the question"),
    "service_tier": (("auto", "default"), "all requests are served alike"),
    "store": ((False,), "answers are not stored"),
}


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
    top_k: int = Field(0, ge=-1)  # as in vLLM, like the two below; 0 and -1: all tokens
    min_p: float = Field(0, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=2)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: str | list[str] = Field(default_factory=list, max_length=1000)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=20)
    mm_processor_kwargs: ProcessorOptions = Field(default_factory=ProcessorOptions)
    # labels, which are accepted without effect
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    metadata: dict[str, Any] | None = None
    # see NOT_SERVED
    n: int | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    functions: list[Any] | None = None
    function_call: Any = None
    response_format: Any = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, Any] | None = None
    modalities: list[str] | None = None
    reasoning_effort: str | None = None
    verbosity: str | None = None
    service_tier: str | None = None
    store: bool | None = None

    def check(self) -> None:
        """Raise UserError if the request is contradictory or asks for something that is not supported."""
        for name, (harmless, advice) in NOT_SERVED.items():
            value = getattr(self, name)
            unused = name == "tools" and self.tool_choice == "none"
            if value is not None and value not in harmless and not unused:
                shown = "" if isinstance(value, list) else f" {short(value)}"  # lists of tools are long
                raise UserError(f"{name}{shown} is not served: {advice}.")
        if self.max_tokens and self.max_completion_tokens and self.max_tokens != self.max_completion_tokens:
            raise UserError("max_tokens and max_completion_tokens have the same meaning; give one of them.")
        if self.top_logprobs and not self.logprobs:
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
        """The settings of an answer of at most `length` tokens."""
        top_logprobs = (self.top_logprobs or 0) if self.logprobs else None
        return Settings(length, self.decoding(), self.seed, self.stops(), top_logprobs)

    def decoding(self) -> Decoding:
        """How the next token is chosen.

        Without a temperature answers are greedy, as everywhere in this library, unless the request limits the tokens to
        sample from.
        """
        top_p, top_k = self.top_p or 1.0, max(self.top_k, 0)
        sampled = top_p < 1 or top_k > 0 or self.min_p > 0
        temperature = float(sampled) if self.temperature is None else self.temperature
        return Decoding(temperature, top_p, top_k=top_k, min_p=self.min_p, repetition_penalty=self.repetition_penalty)
