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
    assert main([*arguments, "--dtype", "float32", "What is it?"]) == 0
    assert capsys.readouterr().out.strip() == answer(*vlm, images[0], "What is it?", max_new_tokens=6)


@pytest.mark.slow
def test_command_about_several_images_and_sampled(
    vlm: Loaded, vlm_dir: Path, tmp_path: Path, images: list[Image.Image], capsys: pytest.CaptureFixture
) -> None:
    arguments = ["chat", "--model", str(vlm_dir), "--max_new_tokens", "6", "--dtype", "float32"]
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
    Image.new("RGB", (90, 50)).save(tmp_path / "wide.png")
    about = ["--model", str(vlm_dir), "--image", str(tmp_path / "wide.png")]
    early = ["--model", str(tmp_path / "none")]  # refused before the model is opened
    cases = [
        ([*early, "--visual_tokens", "0"], "a whole number of visual tokens, at least 1, got 0."),
        ([*early, "--visual_tokens", "-1"], "a whole number of visual tokens, at least 1, got -1."),
        ([*early, "--visual_tokens", "10000000000"], "at most 131072 visual tokens, got 10000000000."),
        ([*early, "--region", "0,0,1,1"], "--region is a box of an image: add --image FILE."),
        ([*about, "--region", "-0.5,0,1,1"], "A box lies inside the image"),
        ([*about, "--region", "0.5,0,0.5,1"], "A box lies inside the image"),
        ([*about, "--region", "0,0,1"], "A box is four numbers (x1, y1, x2, y2), got [0.0, 0.0, 1.0]"),
        ([*about, "--region", "0,0,nan,1"], "A box is four numbers"),
        ([*about, "--region", "left"], "A region is a box x1,y1,x2,y2 with [0, 1] from edge to edge, got 'left'."),
        ([*about, "--region", "0,0,0.1,1"], "outside the central square"),
        ([*about, "--visual_tokens", "2049"], "exceeds the 2048 positions"),
        ([*about, "--visual_tokens", "1800"], "more than the 2048 that the model takes. Ask for fewer visual tokens"),
        (["--model", str(tmp_path / "none")], "There is no model directory"),
        (["--model", str(vlm_dir), "--image", str(tmp_path / "none.png")], "none.png"),
        (["--model", str(vlm_dir), "--image", str(tmp_path / "broken.png")], "broken.png"),
    ]
    for arguments, message in cases:
        assert main(["chat", *arguments, "What?"]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


@pytest.mark.parametrize("typed", ["16.5", "abc"])
def test_a_number_of_visual_tokens_is_whole(typed: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end:
        main(["chat", "--model", "m", "--visual_tokens", typed, "What?"])
    assert end.value.code == 2
    assert f"invalid int value: '{typed}'" in capsys.readouterr().err


def test_command_with_visual_tokens_and_regions(
    vlm: Loaded, vlm_dir: Path, tmp_path: Path, images: list[Image.Image], capsys: pytest.CaptureFixture
) -> None:
    arguments = ["chat", "--model", str(vlm_dir), "--max_new_tokens", "6", "--visual_tokens", "3", "--dtype", "float32"]
    for number in (0, 1):
        images[number].save(tmp_path / f"{number}.png")
        arguments += ["--image", str(tmp_path / f"{number}.png")]
    boxes = [(0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 0.5)]
    assert main([*arguments, "--region", "0,0,0.5,1", "--region=0.5, 0, 1, 0.5", "What is it?"]) == 0
    expected = answer(*vlm, images[:2], "What is it?", 6, visual_tokens=3, regions=boxes)
    assert capsys.readouterr().out.strip() == expected
    assert "".join(stream(*vlm, images[:2], "What is it?", 6, visual_tokens=3, regions=boxes)).strip() == expected
    assert main([*arguments[:9], "What is it?"]) == 0  # without images
    assert capsys.readouterr().out.strip() == answer(*vlm, None, "What is it?", 6)
