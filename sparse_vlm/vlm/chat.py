"""Questions about images and videos and their answers, complete or streamed.

Decoding is greedy by default, hence reproducible.
"""

from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event
from typing import Any

from PIL import Image
from transformers import BatchFeature, StoppingCriteriaList, TextIteratorStreamer

from sparse_vlm.errors import UserError
from sparse_vlm.vlm.decoding import GREEDY, Decoding, EndWhen
from sparse_vlm.vlm.language.messages import boxes_of
from sparse_vlm.vlm.language.positions import most_positions
from sparse_vlm.vlm.language.turns import template_refusals
from sparse_vlm.vlm.modeling import SparseVLMForConditionalGeneration
from sparse_vlm.vlm.processing import SparseVLMProcessor
from sparse_vlm.vlm.videos.processor import VideoOptions
from sparse_vlm.vlm.views import Box, unpack_views

# The images of a question: none, one, or several, which come before the question in this order.
Images = Image.Image | Sequence[Image.Image] | None


def encode_prompt(
    processor: SparseVLMProcessor,
    image: Images,
    question: str,
    system: str | None = None,
    *,
    visual_tokens: int | None = None,
    regions: Sequence[Box] = (),
    videos: Sequence[Any] = (),
    video_options: VideoOptions | None = None,
) -> BatchFeature:
    """Encode one question as the model's inputs, up to where the answer begins.

    Args:
        processor: the processor of the model directory.
        image: images of any size and mode; see `Images`.
        question: plain text.
        system: the system prompt; None: the chat template's own, if it has one.
        visual_tokens: number of visual tokens of each image; None: the model's own.
        regions: boxes of the last image to look at more closely, (x1, y1, x2, y2) with [0, 1] from edge to edge.
        videos: videos, which come after the images; see `read_clip` for what a video may be.
        video_options: how the videos are shown; None: as the processor's settings say.
    """
    check_question(question)
    images = as_list(image)
    turns = [*system_message(system), user_message(question, len(images), regions, len(videos))]
    return encode_messages(processor, turns, images, visual_tokens, videos, video_options)


def check_question(question: str) -> None:
    """Raise UserError if a question is empty."""
    if not question.strip():
        raise UserError("The question is empty.")


def as_list(image: Images) -> list[Image.Image]:
    """Return the images as a list."""
    return [] if image is None else [image] if isinstance(image, Image.Image) else list(image)


def system_message(text: str | None) -> list[dict[str, Any]]:
    """The turn of a system prompt, in a list; empty without one."""
    return [] if text is None else [{"role": "system", "content": [{"type": "text", "text": text}]}]


def user_message(question: str, images: int, regions: Sequence[Box] = (), videos: int = 0) -> dict[str, Any]:
    """A user's turn for transformers' chat templates: `images` images, regions of the last one, `videos` videos, then
    the question."""
    parts: list[dict[str, Any]] = [{"type": "image"}] * images
    parts += [{"type": "region", "box": list(box)} for box in regions]
    parts += [{"type": "video"}] * videos
    return {"role": "user", "content": [*parts, {"type": "text", "text": question}]}


def encode_messages(
    processor: SparseVLMProcessor,
    messages: Sequence[Mapping[str, Any]],
    images: Sequence[Image.Image],
    visual_tokens: int | Sequence[int] | None = None,
    videos: Sequence[Any] = (),
    video_options: VideoOptions | None = None,
) -> BatchFeature:
    """Encode a conversation as the model's inputs, up to where the next answer begins.

    Args:
        processor: the processor of the model directory.
        messages: turns; see `user_message`. Answers are {"role": "assistant", "content": text}.
        images: the images of all turns, in order.
        visual_tokens: number of visual tokens of each image, or one number for all; None: the model's own.
        videos: the videos of all turns, in order.
        video_options: how the videos are shown; None: as the processor's settings say.

    Raises:
        UserError: the chat template refuses the conversation, or a box or number does not fit.
    """
    turns: Any = list(messages)
    with template_refusals():
        text = processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    return processor(
        text=text,
        images=list(images) or None,
        videos=list(videos) or None,
        visual_tokens=visual_tokens,
        regions=boxes_of(turns) or None,
        add_special_tokens=False,  # the template has written all of them
        return_tensors="pt",
        **(video_options or VideoOptions()).settings,
    )


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


def check_inputs(model: Any, inputs: BatchFeature, answer: int) -> None:
    """Check that an encoded prompt and its answer suit a model. Call this before the model runs.

    Args:
        model: returned by `load_vlm`.
        inputs: returned by `encode_prompt` or `encode_messages`.
        answer: maximum number of tokens of the answer.

    Raises:
        UserError: see `check_length` and `SparseVLMModel.check_views`.
    """
    prompt = inputs["input_ids"].shape[1]
    if "views" not in inputs:
        check_length(model, prompt, answer)
        return
    advice = "Lower max_frames, fps or frame_tokens" if "video_frames" in inputs else "Ask for fewer visual tokens"
    check_length(model, prompt, answer, advice=advice)
    model.model.check_views(unpack_views(inputs["views"]))


def answer(
    model: SparseVLMForConditionalGeneration,
    processor: SparseVLMProcessor,
    image: Images,
    question: str,
    max_new_tokens: int = 256,
    *,
    decoding: Decoding | None = None,
    system: str | None = None,
    visual_tokens: int | None = None,
    regions: Sequence[Box] = (),
    videos: Sequence[Any] = (),
    video_options: VideoOptions | None = None,
) -> str:
    """Answer a question about images and videos.

    Args:
        model, processor: returned by `load_vlm`.
        image: see `Images`.
        question: plain text.
        max_new_tokens: maximum length of the answer.
        decoding: how the next token is chosen; None: greedily.
        system: the system prompt; None: the chat template's own, if it has one.
        visual_tokens, regions, videos, video_options: see `encode_prompt`.

    Returns:
        The answer without special tokens and surrounding white space.
    """
    inputs = encode_prompt(
        processor,
        image,
        question,
        system,
        visual_tokens=visual_tokens,
        regions=regions,
        videos=videos,
        video_options=video_options,
    )
    return answer_inputs(model, processor, inputs, max_new_tokens, decoding)


def answer_inputs(
    model: SparseVLMForConditionalGeneration,
    processor: SparseVLMProcessor,
    inputs: BatchFeature,
    max_new_tokens: int = 256,
    decoding: Decoding | None = None,
) -> str:
    """Answer an encoded prompt or conversation; see `answer`."""
    check_inputs(model, inputs, max_new_tokens)
    inputs = inputs.to(model.device)
    generator: Any = model  # transformers' annotations of generate do not fit its own Llava classes
    ids = generator.generate(**inputs, max_new_tokens=max_new_tokens, **(decoding or Decoding()).settings)
    return processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def stream(
    model: SparseVLMForConditionalGeneration,
    processor: SparseVLMProcessor,
    image: Images,
    question: str,
    max_new_tokens: int = 256,
    *,
    visual_tokens: int | None = None,
    regions: Sequence[Box] = (),
    videos: Sequence[Any] = (),
    video_options: VideoOptions | None = None,
) -> Iterator[str]:
    """Yield the same answer in non-empty pieces, as they are generated; white space is kept.

    Arguments and errors are those of `answer`.
    """
    inputs = encode_prompt(
        processor,
        image,
        question,
        visual_tokens=visual_tokens,
        regions=regions,
        videos=videos,
        video_options=video_options,
    )
    check_inputs(model, inputs, max_new_tokens)
    yield from stream_inputs(model, processor, inputs, max_new_tokens)


def stream_inputs(
    model: SparseVLMForConditionalGeneration,
    processor: SparseVLMProcessor,
    inputs: BatchFeature,
    max_new_tokens: int = 256,
    sampling: Mapping[str, Any] = GREEDY,
    streamer: TextIteratorStreamer | None = None,
) -> Generator[str]:
    """Yield the answer to an encoded prompt in non-empty pieces. Closing the iterator ends the generation.

    Args:
        model, processor: returned by `load_vlm`.
        inputs: returned by `encode_prompt` or `encode_messages`.
        max_new_tokens: maximum length of the answer.
        sampling: transformers' generation settings.
        streamer: receives the tokens, for callers that need more than their text; None: a new one.
    """
    streamer = streamer or TextIteratorStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    stop = Event()

    def release(future: Future) -> None:
        if future.exception() is not None:  # otherwise generate has ended the stream itself
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
            yield from filter(None, streamer)  # a token that completes no character gives ""
        finally:  # also if the caller closes the iterator; leaving the pool waits for the thread
            stop.set()
        future.result()  # raises what generate raised
