"""Answers about videos from shared prefixes equal the answers to single questions."""

from pathlib import Path

import pytest
import torch

from sparse_vlm.errors import UserError
from sparse_vlm.videos.files import VideoFile
from sparse_vlm.vlm.answering import Answerer
from sparse_vlm.vlm.chat import answer
from sparse_vlm.vlm.videos.answering import VideoAnswerer
from sparse_vlm.vlm.videos.clips import Clip
from sparse_vlm.vlm.videos.processor import VideoOptions
from tests.clips import corner_frame, grey_frames, write_clip

QUESTIONS = ["what color is the shape?", "is there a circle?", "does the image not contain a red shape?", "why?"]
OPTIONS = VideoOptions(fps=5, max_frames=6, frame_tokens=4)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two videos of different lengths."""
    folder = tmp_path_factory.mktemp("clips")
    short = write_clip(folder / "short.mp4", [corner_frame()] * 4)
    return [write_clip(folder / "long.mp4", [*grey_frames(10), *[corner_frame()] * 10]), short]


def collect(answerer: VideoAnswerer, clip: Clip, questions: list[str]) -> list[str]:
    answers: dict[int, str] = {}
    for batch in answerer.answer_video(clip, questions):
        assert 0 < len(batch) <= answerer.batch_rows
        answers |= dict(batch)
    return [answers[row] for row in range(len(questions))]


@pytest.mark.parametrize("options", [OPTIONS, VideoOptions(max_frames=3, timestamps=True)])
def test_shared_prefixes_give_the_answers_of_single_questions(
    answerer: Answerer, clips: list[Path], options: VideoOptions
) -> None:
    model, processor = answerer.model, answerer.processor
    videos = VideoAnswerer(model, processor, 6, 3, video_options=options)
    found = []
    for file in clips:
        clip = videos.read(file)
        expected = [answer(model, processor, None, text, 6, videos=[file], video_options=options) for text in QUESTIONS]
        assert collect(videos, clip, QUESTIONS) == expected
        found.append(expected)
    assert found[0] != found[1]


def test_the_frames_pass_the_encoder_once(
    answerer: Answerer, clips: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    videos = VideoAnswerer(answerer.model, answerer.processor, 4, 2, video_options=OPTIONS)
    clip, passed = videos.read(clips[0]), []
    inner = answerer.model.model.encode_images
    monkeypatch.setattr(
        answerer.model.model,
        "encode_images",
        lambda *images, **options: passed.append(options) or inner(*images, **options),
    )
    collect(videos, clip, QUESTIONS)
    assert len(passed) == 1


def test_a_model_that_cannot_be_batched_is_asked_one_by_one(
    answerer: Answerer, clips: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    videos = VideoAnswerer(answerer.model, answerer.processor, 6, video_options=OPTIONS)
    clip = videos.read(clips[0])
    expected = collect(videos, clip, QUESTIONS)
    monkeypatch.setattr(videos, "_needs_single_questions", lambda: True)
    batches = list(videos.answer_video(clip, QUESTIONS))
    assert batches == [[(index, text)] for index, text in enumerate(expected)]


def test_prompts_that_are_too_long_are_refused(
    answerer: Answerer, clips: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    videos = VideoAnswerer(answerer.model, answerer.processor, 6, video_options=OPTIONS)
    clip = videos.read(clips[0])
    tokens = videos._tokens(len(clip), "why?")
    monkeypatch.setattr(answerer.model.config.get_text_config(), "max_position_embeddings", tokens + 6)
    videos.check_video_length(len(clip), "why?")
    collect(videos, clip, ["why?"])
    said = r"'is there a circle\?' and 6 frames and an answer of 6 tokens.*Lower max_frames, fps or frame_tokens"
    with pytest.raises(UserError, match=said):
        videos.check_video_length(len(clip), "is there a circle?")
    with pytest.raises(UserError, match=said):
        collect(videos, clip, ["is there a circle?"])


def test_frame_tokens_are_checked(answerer: Answerer) -> None:
    with pytest.raises(UserError, match="100000"):
        VideoAnswerer(answerer.model, answerer.processor, 6, video_options=VideoOptions(frame_tokens=100000))
    videos = VideoAnswerer(answerer.model, answerer.processor, 6, video_options=OPTIONS)
    assert videos.tokens_per_frame == 4


def test_a_part_of_a_file(answerer: Answerer, clips: list[Path]) -> None:
    """The frames of a part are those of the file at the same times."""
    videos = VideoAnswerer(answerer.model, answerer.processor, 6, video_options=VideoOptions(fps=10))
    whole, part = videos.read(clips[0]), videos.read(VideoFile(clips[0], part=(0.35, 0.72)))
    assert torch.equal(part.pixel_values, whole.pixel_values[3:8])
    assert part.metadata.timestamps == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert videos.read(VideoFile(clips[0], part=(1.85, 100))).metadata.timestamps == pytest.approx([0, 0.1])
    with pytest.raises(UserError, match=r"long\.mp4 has no frame from 2 to 3 s: it lasts 2\.0 s"):
        VideoFile(clips[0], part=(2, 3))
