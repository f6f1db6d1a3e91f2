"""Answers about videos: functions, conversations, the command and the terminal."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from sparse_vlm.cli import main
from sparse_vlm.encoder import SparseFormer, SparseFormerConfig
from sparse_vlm.errors import UserError
from sparse_vlm.vlm.build import build_vlm
from sparse_vlm.vlm.chat import answer, check_inputs, encode_prompt, stream
from sparse_vlm.vlm.conversation import Conversation
from sparse_vlm.vlm.processing import SparseVLMProcessor
from sparse_vlm.vlm.videos.processor import VideoOptions
from tests.clips import grey_frames, write_clip
from tests.vlm.conftest import Loaded

QUESTION = "What happens?"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "a.mp4", grey_frames(20))


def say(conversation: Conversation, question: str) -> str:
    return "".join(conversation.ask(question, max_new_tokens=6)).strip()


def test_conversation(vlm: Loaded, clip: Path, images: list[Image.Image]) -> None:
    options = VideoOptions(fps=1, frame_tokens=3, timestamps=True)
    prompt = encode_prompt(vlm[1], images[0], QUESTION, videos=[clip], video_options=options)
    text = vlm[1].decode(prompt["input_ids"][0])
    assert f"{'<image>' * 6}\n0.0s: <image><image><image>\n1.0s: <image><image><image>\n{QUESTION}" in text
    expected = answer(*vlm, images[0], QUESTION, 6, videos=[clip], video_options=options)
    conversation = Conversation(*vlm, video_options=options)
    conversation.watch(clip)
    conversation.show(images[0])
    assert say(conversation, QUESTION) == expected != ""
    assert say(conversation, "And then?")
    conversation.watch(str(clip))
    assert say(conversation, "And this one?")
    assert len(conversation.videos) == 2
    pieces = stream(*vlm, images[0], QUESTION, 6, videos=[clip], video_options=options)
    assert "".join(pieces).strip() == expected
    conversation.clear()
    assert conversation.videos == []


def test_a_region_after_a_video_is_refused_at_once(vlm: Loaded, clip: Path, images: list[Image.Image]) -> None:
    conversation = Conversation(*vlm, video_options=VideoOptions(fps=1, frame_tokens=3))
    conversation.show(images[0])
    conversation.watch(clip)
    assert say(conversation, QUESTION)
    with pytest.raises(UserError, match="but a video came last: attach the image again"):
        conversation.look_at((0, 0, 1, 0.5))
    assert say(conversation, QUESTION)
    conversation.show(images[0])
    conversation.look_at((0, 0, 1, 0.5))
    conversation.watch(clip)
    assert say(conversation, QUESTION)


def test_a_video_that_is_too_long_for_the_model(vlm: Loaded, clip: Path) -> None:
    inputs = encode_prompt(vlm[1], None, QUESTION, videos=[clip], video_options=VideoOptions(10, None, 120))
    with pytest.raises(UserError, match=r"more than the 2048 that the model takes\. Lower max_frames"):
        check_inputs(vlm[0], inputs, 6)
    with pytest.raises(UserError, match="Lower max_frames, fps or frame_tokens"):
        answer(*vlm, None, QUESTION, 6, videos=[clip], video_options=VideoOptions(10, None, 120))


def test_command(vlm: Loaded, vlm_dir: Path, clip: Path, capsys: pytest.CaptureFixture) -> None:
    about = ["chat", "--model", str(vlm_dir), "--dtype", "float32", "--max_new_tokens", "6", "--video", str(clip)]
    options = ["--fps", "5", "--max_frames", "4", "--frame_tokens", "3", "--timestamps"]
    assert main([*about, *options, QUESTION]) == 0
    expected = answer(*vlm, None, QUESTION, 6, videos=[clip], video_options=VideoOptions(5, 4, 3, True))
    assert capsys.readouterr().out.strip() == expected


def test_command_with_bad_input(tmp_path: Path, clip: Path, capsys: pytest.CaptureFixture) -> None:
    cases = [  # refused before the model is opened
        (["--video", str(tmp_path / "none.mp4")], f"The video {tmp_path / 'none.mp4'} does not exist"),
        (["--video", str(clip), "--fps", "0"], "fps must be a number above 0, got 0"),
        (["--video", str(clip), "--frame_tokens", "0"], "at least 1, got 0"),
        (["--fps", "2"], "are for videos: add --video FILE"),
    ]
    for options, sentence in cases:
        assert main(["chat", "--model", str(tmp_path / "none"), *options, QUESTION]) == 2
        error = capsys.readouterr().err
        assert sentence in error
        assert error.count("\n") == 1


def test_terminal(
    vlm: Loaded, vlm_dir: Path, clip: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = f"/video {clip}\n{QUESTION}\n/video none.mp4\n/video\n/exit\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    arguments = ["chat", "--model", str(vlm_dir), "--dtype", "float32", "--max_new_tokens", "6", "--fps", "1"]
    assert main(arguments) == 0
    output = capsys.readouterr().out
    assert "Video attached." in output
    assert answer(*vlm, None, QUESTION, 6, videos=[clip], video_options=VideoOptions(1)) in output
    assert "error: The video none.mp4 does not exist" in output
    assert "error: The file is missing: /video FILE" in output


def test_default_tokens_of_a_frame(vlm: Loaded, tmp_path: Path, llm_dir: Path, tiny_config: SparseFormerConfig) -> None:
    assert vlm[1].frame_tokens is None
    elastic = replace(tiny_config, focus=replace(tiny_config.focus, tokens=36), trained_tokens="4-36")
    SparseFormer(elastic).save_pretrained(tmp_path / "encoder")
    build_vlm(tmp_path / "encoder", llm_dir, tmp_path / "vlm")
    processor = SparseVLMProcessor.from_pretrained(tmp_path / "vlm")
    assert processor.frame_tokens == 16
    inputs = processor(text="<video>", videos=[Image.new("RGB", (8, 8))] * 2, return_tensors="pt")
    assert inputs["views"][:, 1].tolist() == [16, 16]
