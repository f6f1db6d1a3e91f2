"""Answers to questions about a picture, at once or as they are generated. Greedy, so that they repeat."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event
from typing import Any

from PIL import Image
from transformers import BatchFeature, StoppingCriteriaList, TextIteratorStreamer

from sparse_vlm.errors import UserError
from sparse_vlm.vlm.decoding import GREEDY, Decoding, EndWhen
from sparse_vlm.vlm.language.causal_lm import most_positions
from sparse_vlm.vlm.language.turns import template_refusals
from sparse_vlm.vlm.modeling import SparseVLMForConditionalGeneration
from sparse_vlm.vlm.processing import SparseVLMProcessor

# What a question may be about: nothing, a picture, or several, which stand before the question in their order.
Pictures = Image.Image | Sequence[Image.Image] | None


def encode_prompt(
    processor: SparseVLMProcessor, image: Pictures, question: str, system: str | None = None
) -> BatchFeature:
    """One question as the model's inputs, up to where the answer begins.

    Args:
        processor: of the model directory.
        image: of any size and mode; see `Pictures`.
        question: plain text.
        system: a system prompt; None: the chat template's own, where it has one.

    Raises:
        UserError: the question is empty.
    """
    check_question(question)
    images = as_list(image)
    return encode_messages(processor, [*system_message(system), user_message(question, len(images))], images)


def check_question(question: str) -> None:
    """Raises UserError where a question is empty."""
    if not question.strip():
        raise UserError("The question is empty.")


def as_list(image: Pictures) -> list[Image.Image]:
    """The pictures one by one."""
    return [] if image is None else [image] if isinstance(image, Image.Image) else list(image)


def system_message(text: str | None) -> list[dict[str, Any]]:
    """The turn of a system prompt, if there is one."""
    return [] if text is None else [{"role": "system", "content": [{"type": "text", "text": text}]}]


def user_message(question: str, images: int) -> dict[str, Any]:
    """A user's turn for transformers' chat templates: `images` pictures, then the question."""
    return {"role": "user", "content": [{"type": "image"}] * images + [{"type": "text", "text": question}]}


def encode_messages(
    processor: SparseVLMProcessor, messages: Sequence[Mapping[str, Any]], images: Sequence[Image.Image]
) -> BatchFeature:
    """Turns of a conversation as the model's inputs, up to where the next answer begins.

    Args:
        processor: of the model directory.
        messages: see `user_message`; answers are {"role": "assistant", "content": text}.
        images: of all turns, in their order.

    Raises:
        UserError: the chat template refuses the conversation.
    """
    turns: Any = list(messages)
    with template_refusals():
        text = processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    # The template has written every special token already.
    return processor(text=text, images=list(images) or None, add_special_tokens=False, return_tensors="pt")


def answer(
    model: SparseVLMForConditionalGeneration,
    processor: SparseVLMProcessor,
    image: Pictures,
    question: str,
    max_new_tokens: int = 256,
    *,
    decoding: Decoding | None = None,
    system: str | None = None,
) -> str:
    """The model's answer, without special tokens.

    Args:
        model, processor: of `load_vlm`.
        image: see `Pictures`.
        question: plain text.
        max_new_tokens: where an answer that does not end is cut.
        decoding: how the next token is chosen; None: greedily.
        system: a system prompt; None: the chat template's own, where it has one.

    Raises:
        UserError: see `encode_prompt` and `check_length`.
    """
    inputs = encode_prompt(processor, image, question, system).to(model.device)
    check_length(model, inputs["input_ids"].shape[1], max_new_tokens)
    generator: Any = model  # transformers' annotations of generate fit none of its own Llava classes
    ids = generator.generate(**inputs, max_new_tokens=max_new_tokens, **(decoding or Decoding()).settings)
    return processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def stream(
    model: SparseVLMForConditionalGeneration,
    processor: SparseVLMProcessor,
    image: Pictures,
    question: str,
    max_new_tokens: int = 256,
) -> Iterator[str]:
    """The same answer in non-empty pieces, as they are generated (in a thread); not stripped.

    Arguments and errors as in `answer`.
    """
    inputs = encode_prompt(processor, image, question)
    check_length(model, inputs["input_ids"].shape[1], max_new_tokens)
    yield from stream_inputs(model, processor, inputs, max_new_tokens)


def check_length(
    model: Any,
    prompt: int,
    answer: int,
    name: str = "the model",
    *,
    asked: str = "The conversation",
    advice: str = "Begin a new conversation",
) -> None:
    """Check that a prompt and its answer fit into a model.

    Args:
        model: any image-text model.
        prompt: number of tokens of the prompt.
        answer: maximum number of tokens of the answer.
        name: the model's name for the error.
        asked: what the prompt is, for the error.
        advice: how to shorten it, for the error.

    Raises:
        UserError: the language model has fewer positions.
    """
    most = most_positions(model.config.get_text_config())
    if most is not None and prompt + answer > most:
        raise UserError(
            f"{asked} and an answer of {answer} tokens make {prompt + answer} tokens, more than the {most} that {name} "
            f"takes. {advice}, or ask for shorter answers."
        )


def stream_inputs(
    model: SparseVLMForConditionalGeneration,
    processor: SparseVLMProcessor,
    inputs: BatchFeature,
    max_new_tokens: int = 256,
    sampling: Mapping[str, Any] = GREEDY,
    streamer: TextIteratorStreamer | None = None,
) -> Generator[str]:
    """What the model says to a prompt, in non-empty pieces. Closing the iterator stops the generation, within a token.

    Args:
        model, processor: of `load_vlm`.
        inputs: of `encode_prompt` or `encode_messages`.
        max_new_tokens: where an answer that does not end is cut.
        sampling: transformers' generation settings.
        streamer: where the tokens pass, for one who wants more than their text; None: a new one.
    """
    streamer = streamer or TextIteratorStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    stop = Event()

    def release(future: Future) -> None:
        if future.exception() is not None:  # else generate has ended the stream itself
            streamer.text_queue.put(streamer.stop_signal)

    generator: Any = model
    with ThreadPoolExecutor(max_workers=1) as pool:
        future = pool.submit(
            generator.generate,
            **inputs.to(model.device),
            streamer=streamer,
            stopping_criteria=StoppingCriteriaList([EndWhen(stop.is_set)]),
            max_new_tokens=max_new_tokens,
            **sampling,
        )
        future.add_done_callback(release)
        try:
            yield from filter(None, streamer)  # a step that completes no character gives ""
        finally:  # also when the reader goes away: leaving the pool waits for the thread
            stop.set()
        future.result()  # raises what generate raised
