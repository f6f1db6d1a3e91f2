"""Streams: answers equal those on a video of the same frames, and nothing grows."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sparse_vlm.errors import UserError
from sparse_vlm.vlm.chat import answer, encode_prompt
from sparse_vlm.vlm.decoding import Decoding
from sparse_vlm.vlm.language.prefixes import CACHE
from sparse_vlm.vlm.loading import load_vlm
from sparse_vlm.vlm.videos.clips import Clip, ClipMetadata
from sparse_vlm.vlm.videos.processor import VideoOptions
from sparse_vlm.vlm.videos.stream import VideoStream
from tests.vlm.conftest import Loaded

QUESTION = "What happens?"
OPTIONS = VideoOptions(fps=2, max_frames=6, frame_tokens=3, timestamps=True)


@pytest.fixture(scope="module")
def worded(worded_vlm_dir: Path) -> Loaded:
    """A model whose answers differ between frames."""
    return load_vlm(worded_vlm_dir)


@pytest.fixture(scope="module")
def frames() -> list[Image.Image]:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (17, 40, 48, 3), generator=generator, dtype=torch.uint8)
    return [Image.fromarray(frame.numpy()) for frame in pixels]


def expected(vlm: Loaded, frames: list[Image.Image], first: int, options: VideoOptions, **choice: object) -> str:
    """The answer about a video of these frames, which begin with the stream's frame number `first`."""
    pixels = vlm[1].video_processor.read(list(frames), do_sample_frames=False).pixel_values
    times = [(first + index) / 2 for index in range(len(frames))]
    clip = Clip(pixels, ClipMetadata(len(frames), times=times))
    return answer(*vlm, None, QUESTION, 8, videos=[clip], video_options=options, **choice)


def say(stream: VideoStream, question: str = QUESTION) -> str:
    return "".join(stream.ask(question, 8)).strip()


@pytest.mark.parametrize("timestamps", [False, True])
def test_answers_are_those_about_the_last_frames(worded: Loaded, frames: list[Image.Image], timestamps: bool) -> None:
    options = VideoOptions(2, 6, 3, timestamps)
    stream = VideoStream(*worded, options)
    sizes, answers = [], []
    for count, frame in enumerate(frames, start=1):
        stream.add(frame)
        first = count - stream.frames
        answers.append(say(stream))
        assert answers[-1] == expected(worded, frames[first:count], first, options)
        sizes.append(stream.frames)
    # whole until the maximum; then the older half leaves
    assert sizes == [1, 2, 3, 4, 5, 6, 4, 5, 6, 4, 5, 6, 4, 5, 6, 4, 5]
    assert len(set(answers)) > 3
    assert (stream.seen, stream.time) == (17, 8.0)


def test_keys_and_values_are_those_of_the_prompt(worded: Loaded, frames: list[Image.Image]) -> None:
    stream = VideoStream(*worded, OPTIONS)
    for frame in frames[:5]:
        stream.add(frame)
    say(stream)  # leaves no trace
    clip = worded[1].video_processor.read(frames[:5], do_sample_frames=False, video_metadata={"fps": 2})
    inputs = encode_prompt(worded[1], None, QUESTION, videos=[clip], video_options=OPTIONS)
    window = stream._window
    assert window is not None
    assert window.ids == inputs["input_ids"][0, : len(window.ids)].tolist()
    with torch.no_grad():
        cache = worded[0](**inputs, use_cache=True)[CACHE]
    for ours, theirs in zip(window.cache.layers, cache.layers, strict=True):
        torch.testing.assert_close(ours.keys, theirs.keys[:, :, : len(window.ids)], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(ours.values, theirs.values[:, :, : len(window.ids)], rtol=1e-3, atol=1e-4)


def test_memory_is_bounded(vlm: Loaded, frames: list[Image.Image]) -> None:
    stream = VideoStream(*vlm, VideoOptions(max_frames=6, frame_tokens=3))
    sizes = []
    for index in range(40):
        stream.add(frames[index % 17])
        sizes.append(stream.cache_bytes)
    assert sizes[2] < sizes[5] == max(sizes)


def test_a_question_does_not_stop_the_stream(worded: Loaded, frames: list[Image.Image]) -> None:
    stream = VideoStream(*worded, OPTIONS)
    for frame in frames[:3]:
        stream.add(frame)
    pieces: Iterator[str] = stream.ask(QUESTION, 8)
    words = [next(pieces)]
    for frame in frames[3:9]:
        stream.add(frame)
    words += pieces
    assert "".join(words).strip() == expected(worded, frames[:3], 0, OPTIONS)
    assert say(stream) == expected(worded, frames[3:9], 3, OPTIONS)


def test_beams_and_system_prompt(worded: Loaded, frames: list[Image.Image]) -> None:
    stream = VideoStream(*worded, OPTIONS, system="Be brief.")
    stream.add(frames[0])
    assert say(stream) == expected(worded, frames[:1], 0, OPTIONS, system="Be brief.")
    sampled = VideoStream(*worded, OPTIONS, Decoding(temperature=1.0))
    sampled.add(frames[0])
    assert say(sampled)


def test_clear_and_frames_of_other_kinds(worded: Loaded, frames: list[Image.Image]) -> None:
    stream = VideoStream(*worded, VideoOptions(frame_tokens=3))
    stream.add(frames[0])
    stream.clear()
    assert (stream.frames, stream.seen, stream.time, stream.cache_bytes) == (0, 0, None, 0)
    for frame in frames[1:3]:
        stream.add(np.array(frame))
    assert say(stream) == expected(worded, frames[1:3], 0, VideoOptions(frame_tokens=3))


def test_bad_input(worded: Loaded, frames: list[Image.Image], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="max_frames of at least 2, got 1"):
        VideoStream(*worded, VideoOptions(max_frames=1))
    with pytest.raises(UserError, match=r"A stream of 4000 frames, .* more than the .* Lower max_frames or frame"):
        VideoStream(*worded, VideoOptions(max_frames=4000, frame_tokens=3))
    stream = VideoStream(*worded, OPTIONS)
    with pytest.raises(UserError, match="no frame yet"):
        say(stream)
    stream.add(frames[0], 3.0)
    with pytest.raises(UserError, match="at 2 s cannot follow one at 3 s"):
        stream.add(frames[0], 2.0)
    with pytest.raises(UserError, match="question is empty"):
        say(stream, " ")
    with pytest.raises(UserError, match="max_new_tokens must be 1 or more, got 0"):
        list(stream.ask(QUESTION, 0))
    with pytest.raises(UserError, match=r"A stream of 1 frames, the question and an answer of 100000 tokens"):
        list(stream.ask(QUESTION, 100_000))
    monkeypatch.setattr("sparse_vlm.vlm.language.prefixes.NOT_CONTINUED", ("llama",))
    with pytest.raises(UserError, match="of type llama cannot read a stream"):
        VideoStream(*worded)
