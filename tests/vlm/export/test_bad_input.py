"""Bad input to `sparse-vlm export` and to its folders."""

from pathlib import Path

import pytest

from sparse_vlm.cli import main
from sparse_vlm.errors import UserError
from sparse_vlm.vlm.export.runtime import OnnxVLM


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--rois_input"], "--rois_input does not apply to a model directory: leave it out."),
        (["--images", "a.png"], "--images does not apply to a model directory: leave it out."),
        (["--npm_packages", "npm"], "--npm_packages is for --browser: leave it out."),
        (["--visual_tokens", "0"], "a whole number of visual tokens, at least 1, got 0."),
        (["--visual_tokens", "9999"], "exceeds the 2048 positions"),
    ],
)
def test_options_of_a_model(
    options: list[str], sentence: str, vlm_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(vlm_dir), str(tmp_path / "out"), *options]) == 2
    assert sentence in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("options", [["--visual_tokens", "4"], ["--browser"]])
def test_options_of_an_encoder(
    options: list[str], encoder_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(encoder_dir), str(tmp_path / "out"), *options]) == 2
    assert f"{options[0]} does not apply to an encoder directory: leave it out." in capsys.readouterr().err


def test_the_model_is_not_replaced(vlm_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(vlm_dir), str(vlm_dir)]) == 2
    assert "would replace the input" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert main(["export", str(vlm_dir), str(tmp_path / "file")]) == 2
    assert "is a file. Choose another name." in capsys.readouterr().err


def test_other_directories_are_not_opened(vlm_dir: Path, tmp_path: Path) -> None:
    for folder in (vlm_dir, tmp_path / "missing"):
        with pytest.raises(UserError, match=r"has no export\.json: it is not a folder of `sparse-vlm export"):
            OnnxVLM(folder)
