"""Model cards state what is known: teacher, licences, data, measured numbers."""

import json
from pathlib import Path
from typing import Any

import pytest

from sparse_vlm import cli
from sparse_vlm.encoder import SparseFormer
from sparse_vlm.encoder.video.clips import VideoSparseFormer
from sparse_vlm.errors import UserError
from sparse_vlm.hub.cards import encoder_card, is_unedited, licence_in, model_card, read_reports, write_card

REPORT: dict[str, Any] = {
    "benchmark": "easy_vqa",
    "protocol": "easy-VQA, exact match",
    "model_id": "run/model",
    "questions": 9673,
    "scale": "share",
    "scores": {"accuracy": 0.98387, "accuracy_by_type": {"shape": 0.9}},
    "confidence_95": {"accuracy": [0.98076, 0.98669], "accuracy_by_type": {"shape": [0.8, 1.0]}},
    "floors": {"majority": {"accuracy": 0.37}, "no_image": {"accuracy": 0.31096}},
}
MEASURED = (
    "- easy_vqa, accuracy: 98.4 % (95 % interval: 98.1 to 98.7) on 9,673 questions; without the images 31.1 %; "
    "answers of run/model"
)


def test_model_card(vlm_dir: Path) -> None:
    text = (vlm_dir / "README.md").read_text()
    assert "# A vision-language model with 6 visual tokens per image" in text
    assert "- Language model: llm" in text
    assert "None: the projector is untrained." in text
    stages = [{"stage": "align", "data": ["captions.json"]}, {"stage": "instruct", "data": ["a.json", "b.json"]}]
    encoder = {"teacher": "timm:some_vit", "licence": "apache-2.0"}
    card = model_card(encoder, {"language_model": "org/llm", "stages": stages}, 49)
    assert "SparseFormer; teacher: timm:some_vit; licence of its weights: apache-2.0" in card
    assert "- Language model: org/llm" in card
    assert "- align: captions.json\n- instruct: a.json, b.json" in card


def test_an_edited_readme_is_kept(tmp_path: Path) -> None:
    """An unedited card is overwritten; an edited or foreign one is kept."""
    write_card(tmp_path, model_card({}, {}, 49))
    write_card(tmp_path, model_card({}, {}, 64))
    card = tmp_path / "README.md"
    assert "with 64 visual tokens" in card.read_text()
    edited = card.read_text().replace("64 visual", "64 good visual")
    for text in (edited, edited + "\nMore.\n", "# My model\n", ""):
        card.write_text(text)
        write_card(tmp_path, model_card({}, {}, 81))
        assert card.read_text() == text


def test_measured_numbers_are_those_of_the_reports() -> None:
    assert "## Measured" not in model_card({}, {}, 49)
    card = model_card({}, {"language_model": "org/llm", "language_model_licence": "mit"}, 49, reports=[REPORT])
    assert MEASURED in card
    assert "- Language model: org/llm; its licence: mit" in card
    assert "base_model: org/llm" in card
    points = REPORT | {"scale": "points", "scores": {"total": 1500.0}, "confidence_95": {"total": [1400.0, 1600.5]}}
    assert "- easy_vqa, total: 1500.0 (95 % interval: 1400.0 to 1600.5) on" in model_card({}, {}, 4, reports=[points])


def test_an_encoder_directory_has_a_card(encoder_dir: Path, tiny_encoder: SparseFormer, tmp_path: Path) -> None:
    card = (encoder_dir / "README.md").read_text()
    assert "# A SparseFormer encoder with 6 latent tokens per image" in card
    assert "- Teacher: not known; licence of its weights: not known" in card
    values = tiny_encoder.config.to_dict() | {"teacher": "timm:a_vit", "licence": "apache-2.0", "trained_tokens": "4-8"}
    known = encoder_card(values)
    assert "license: apache-2.0" in known
    assert "- Teacher: timm:a_vit; licence of its weights: apache-2.0" in known
    assert "latent tokens: 4-8" in known
    clips = tmp_path / "clips"
    VideoSparseFormer.from_image_encoder(tiny_encoder, spans=2).save_pretrained(clips)
    card = (clips / "README.md").read_text()
    assert "# A SparseFormer encoder with 12 latent tokens per clip" in card
    assert 'VideoSparseFormer.from_pretrained("DIR")' in card
    assert cli.main(["card", str(clips)]) == 0
    assert (clips / "README.md").read_text() == card
    tiny_encoder.save_pretrained(tmp_path / "encoder")
    (tmp_path / "encoder" / "README.md").write_text("# Mine")
    tiny_encoder.save_pretrained(tmp_path / "encoder")
    assert (tmp_path / "encoder" / "README.md").read_text() == "# Mine"


def test_the_command_writes_a_card_with_scores(
    encoder_dir: Path, tiny_encoder: SparseFormer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory, report = tmp_path / "encoder", tmp_path / "scores.json"
    tiny_encoder.save_pretrained(directory)
    report.write_text(json.dumps(REPORT))
    assert cli.main(["card", str(directory), "--scores", str(report)]) == 0
    text = (directory / "README.md").read_text()
    assert MEASURED in text
    assert is_unedited(text)
    (directory / "README.md").write_text(text + "More.\n")
    assert cli.main(["card", str(directory)]) == 2
    assert "was edited, or was not written here" in capsys.readouterr().err
    assert cli.main(["card", str(tmp_path / "gone")]) == 2
    assert "There is no encoder directory" in capsys.readouterr().err


def test_other_files_are_no_reports(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"accuracy": 0.9}))
    with pytest.raises(UserError, match=r"a\.json: This is not a report of `python -m eval.score`"):
        read_reports([tmp_path / "a.json"])


@pytest.mark.parametrize(
    ("text", "licence"),
    [
        ("---\nlicense: apache-2.0\ntags: [a]\n---\n# A", "apache-2.0"),
        ('---\r\ntags: [a]\r\nlicense: "mit"\r\n---\r\n', "mit"),
        ("---\ntags: [a]\n---\nlicense: mit", ""),
        ("license: mit", ""),
    ],
)
def test_the_licence_of_a_card(text: str, licence: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(text)
    assert licence_in(tmp_path) == licence
    assert licence_in(tmp_path / "gone") == ""
