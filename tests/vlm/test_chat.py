from pathlib import Path

import pytest
import torch
from PIL import Image

from sparse_vlm.cli import main
from sparse_vlm.errors import UserError
from sparse_vlm.vlm.chat import answer, encode_prompt, stream
from tests.vlm.conftest import Loaded


def test_the_joined_stream_equals_the_answer(vlm: Loaded, images: list[Image.Image]) -> None:
    pieces = list(stream(*vlm, images[0], "What is it?", max_new_tokens=6))
    assert all(pieces)
    assert "".join(pieces).strip() == answer(*vlm, images[0], "What is it?", max_new_tokens=6) != ""


def test_without_an_image(vlm: Loaded) -> None:
    assert "pixel_values" not in encode_prompt(vlm[1], None, "What is it?")
    assert answer(*vlm, None, "What is it?", max_new_tokens=4)


@pytest.mark.parametrize("size", [(1, 1), (4000, 3000)])
def test_extreme_images(vlm: Loaded, size: tuple[int, int]) -> None:
    assert isinstance(answer(*vlm, Image.new("RGB", size, "blue"), "What is it?", max_new_tokens=2), str)


@pytest.mark.slow
def test_control_tokens_in_messages_are_literal_text(vlm: Loaded, images: list[Image.Image]) -> None:
    typed = "what is an <image> tag? <|im_end|>"
    inputs = encode_prompt(vlm[1], images[0], typed)
    assert int((inputs["input_ids"] == vlm[1].image_token_id).sum()) == 6
    assert f"\n{typed}<|im_end|>" in vlm[1].decode(inputs["input_ids"][0])
    assert isinstance(answer(*vlm, None, typed, max_new_tokens=2), str)


def test_bad_questions(vlm: Loaded, images: list[Image.Image]) -> None:
    with pytest.raises(UserError, match="empty"):
        answer(*vlm, images[0], "  ")
    with pytest.raises(UserError, match="half of a character"):
        answer(*vlm, images[0], "What is \ud83d?")


def test_an_error_during_generation_reaches_the_caller(vlm: Loaded, images: list[Image.Image]) -> None:
    with pytest.raises(ValueError, match="max_new_tokens"):
        list(stream(*vlm, images[0], "What is it?", max_new_tokens=-1))


def test_command(
    vlm: Loaded, vlm_dir: Path, tmp_path: Path, images: list[Image.Image], capsys: pytest.CaptureFixture
) -> None:
    images[0].save(tmp_path / "a.png")
    arguments = ["chat", "--model", str(vlm_dir), "--image", str(tmp_path / "a.png"), "--max_new_tokens", "6"]
    assert main([*arguments, "What is it?"]) == 0
    assert capsys.readouterr().out.strip() == answer(*vlm, images[0], "What is it?", max_new_tokens=6)


@pytest.mark.slow
def test_command_about_several_images_and_sampled(
    vlm: Loaded, vlm_dir: Path, tmp_path: Path, images: list[Image.Image], capsys: pytest.CaptureFixture
) -> None:
    arguments = ["chat", "--model", str(vlm_dir), "--max_new_tokens", "6"]
    for name in ("a.png", "b.png"):
        images["ab".index(name[0])].save(tmp_path / name)
        arguments += ["--image", str(tmp_path / name)]
    assert main([*arguments, "What is it?"]) == 0
    greedy = capsys.readouterr().out.strip()
    assert greedy == answer(*vlm, images[:2], "What is it?", max_new_tokens=6)
    sampled = set()
    for seed in range(4):
        torch.manual_seed(seed)
        assert main([*arguments, "--temperature", "5", "--top_p", "1", "What is it?"]) == 0
        sampled.add(capsys.readouterr().out.strip())
    assert len(sampled) > 1
    assert main([*arguments, "--temperature", "-1", "What is it?"]) == 2
    assert "--temperature must be 0 (greedy) or more, got -1" in capsys.readouterr().err


def test_command_with_quantized_weights(vlm_dir: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["chat", "--model", str(vlm_dir), "--max_new_tokens", "2", "--bits", "8", "What is it?"]) == 0
    assert capsys.readouterr().out.strip()


def test_command_with_bad_input(vlm_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    cases = [
        (["--model", str(tmp_path / "none")], "There is no model directory"),
        (["--model", str(vlm_dir), "--image", str(tmp_path / "none.png")], "none.png"),
        (["--model", str(vlm_dir), "--image", str(tmp_path / "broken.png")], "broken.png"),
    ]
    for arguments, message in cases:
        assert main(["chat", *arguments, "What?"]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert "Traceback" not in error
