"""The quickstart's data: true captions, balanced answers, one image per conversation, nothing of the test split."""

import json
import random
from pathlib import Path

import pytest

pytest.importorskip("easy_vqa")

from sparse_vlm.data.conversations import parse_sample
from sparse_vlm.data.easy_vqa import load_questions
from train.quickstart.data import balanced, main


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("data")
    arguments = ["--output_dir", str(directory), "--texts", "20", "--images", "50", "--test_images", "3"]
    assert main(arguments) == 0
    return directory


def _read(path: Path) -> list:
    return json.loads(path.read_text())


def test_every_record_is_a_sound_llava_sample(data: Path) -> None:
    captions, instruct = _read(data / "captions.json"), _read(data / "instruct.json")
    assert len(captions) == 3578
    assert len(instruct) == 70
    for index, record in enumerate(captions + instruct):
        parse_sample(record, index)


def test_text_comes_first_and_pictures_after(data: Path) -> None:
    has_image = ["image" in record for record in _read(data / "instruct.json")]
    assert has_image == [False] * 20 + [True] * 50


def test_answers_are_the_official_ones(data: Path) -> None:
    known = {(q.image_id, q.text): q.answer for q in load_questions("train")}
    for record in _read(data / "instruct.json"):
        image = int(record["id"].rpartition("-")[2])
        turns = record["conversations"]
        for human, gpt in zip(turns[::2], turns[1::2], strict=True):
            assert known[image, human["value"].splitlines()[-1]] == gpt["value"]


def test_as_many_yes_as_no() -> None:
    questions = load_questions("train")
    for image in range(50):
        chosen = balanced([q for q in questions if q.image_id == image], random.Random(0))
        answers = [question.answer for question in chosen]
        assert answers.count("yes") == answers.count("no") <= 2
        assert len({question.text for question in chosen}) == len(chosen)


def test_questions_are_the_official_test_questions(data: Path) -> None:
    expected = [[q.text, q.answer, q.image_id] for q in load_questions("test") if q.image_id < 3]
    assert _read(data / "questions.json") == expected


def test_validation_images_are_left_out(tmp_path: Path) -> None:
    main(["--output_dir", str(tmp_path), "--texts", "20", "--images", "3800", "--validation_images", "200"])
    asked = {image for _, _, image in _read(tmp_path / "questions.json")}
    shown = {
        record["image"]
        for record in _read(tmp_path / "instruct.json") + _read(tmp_path / "captions.json")
        if "image" in record
    }
    assert len(asked) == 200
    assert not {f"{image}.png" for image in asked} & shown


def test_too_many_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--output_dir", str(tmp_path), "--texts", "4000"]) == 2
    assert "Only 3578 images have a caption, 4000" in capsys.readouterr().err
