"""Answers to questions about a picture, at once or as they are generated. Greedy, so that they repeat."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from PIL import Image
from transformers import BatchFeature, TextIteratorStreamer

from sparse_vlm.errors import UserError
from sparse_vlm.vlm.modeling import SparseVLMForConditionalGeneration
from sparse_vlm.vlm.processing import IMAGE_TOKEN, SparseVLMProcessor

# A model's generation_config may hold sampling settings; greedy decoding must not warn about them.
GREEDY: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}


# What a question may be about: nothing, a picture, or several, which stand before the question in their order.
Pictures = Image.Image | Sequence[Image.Image] | None


def encode_prompt(processor: SparseVLMProcessor, image: Pictures, question: str) -> BatchFeature:
    """One question as the model's inputs, up to where the answer begins.

    Args:
        processor: of the model directory.
        image: of any size and mode; see `Pictures`.
        question: plain text.

    Raises:
        UserError: the question is empty or contains the placeholder.
    """
    if not question.strip():
        raise UserError("The question is empty.")
    if IMAGE_TOKEN in question:
        raise UserError(
            f"The question must not contain {IMAGE_TOKEN}: the picture's place is set by the chat template."
        )
    images = [] if image is None else [image] if isinstance(image, Image.Image) else list(image)
    parts = [{"type": "image"}] * len(images) + [{"type": "text", "text": question}]
    messages: Any = [{"role": "user", "content": parts}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    # The template has written every special token already.
    return processor(text=text, images=images or None, add_special_tokens=False, return_tensors="pt")


def answer(
    model: SparseVLMForConditionalGeneration,
    processor: SparseVLMProcessor,
    image: Pictures,
    question: str,
    max_new_tokens: int = 256,
) -> str:
    """The model's answer, without special tokens.

    Args:
        model, processor: of `load_vlm`.
        image: see `Pictures`.
        question: plain text.
        max_new_tokens: where an answer that does not end is cut.

    Raises:
        UserError: see `encode_prompt`.
    """
    inputs = encode_prompt(processor, image, question).to(model.device)
    generator: Any = model  # transformers' annotations of generate fit none of its own Llava classes
    ids = generator.generate(**inputs, max_new_tokens=max_new_tokens, **GREEDY)
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
    inputs = encode_prompt(processor, image, question).to(model.device)
    streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)

    def release(future: Future) -> None:
        if future.exception() is not None:  # else generate has ended the stream itself
            streamer.text_queue.put(streamer.stop_signal)

    generator: Any = model
    with ThreadPoolExecutor(max_workers=1) as pool:
        future = pool.submit(generator.generate, **inputs, streamer=streamer, max_new_tokens=max_new_tokens, **GREEDY)
        future.add_done_callback(release)
        yield from filter(None, streamer)  # a step that completes no character gives ""
        future.result()  # raises what generate raised
