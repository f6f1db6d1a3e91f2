"""The quickstart's data: correct captions, balanced answers, one image per conversation, no test data."""

import json
import random
from pathlib import Path

import pytest

pytest.importorskip("easy_vqa")

from sparse_vlm.data.conversations.samples import parse_sample
from sparse_vlm.data.easy_vqa import VqaQuestion, attributes_from_questions, load_questions
from train.quickstart.data import Kind, balanced, by_answer, by_colour, main, usable_images

SORTED = [
    ("is there a red shape?", "yes"),
    ("is there not a red shape?", "no"),
    ("is there a circle?", "no"),
    ("what color is the shape?", "red"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("data")
    arguments = ["--output_dir", str(directory), "--texts", "20", "--test_images", "3"]
    arguments += ["--images_by_answer", "30", "--images_by_colour", "20"]
    assert main(arguments) == 0
    return directory


def _read(path: Path) -> list:
    return json.loads(path.read_text())


@pytest.mark.slow
def test_every_record_is_a_valid_llava_sample(data: Path) -> None:
    captions, reading, instruct = (_read(data / f"{name}.json") for name in ("captions", "reading", "instruct"))
    training = [q for q in load_questions("train") if (data / "train" / f"{q.image_id}.png").exists()]
    assert [len(captions), len(reading), len(instruct)] == [len(attributes_from_questions(training)), 20, 50]
    for index, record in enumerate(captions + reading + instruct):
        parse_sample(record, index)
    assert all("image" in record for record in captions + instruct)
    assert not any("image" in record for record in reading)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["reading", "instruct"])
def test_answers_are_the_official_ones(data: Path, name: str) -> None:
    known = {(q.image_id, q.text): q.answer for q in load_questions("train")}
    captions = {i: attributes.caption for i, attributes in attributes_from_questions(load_questions("train")).items()}
    for record in _read(data / f"{name}.json"):
        image = int(record["id"].rpartition("-")[2])
        values = [turn["value"] for turn in record["conversations"]]
        turns = list(zip(values[::2], values[1::2], strict=True))
        if name == "reading":
            assert turns[0] == (captions[image], captions[image])
            turns = [(human.removeprefix(f"{captions[image]}\n"), answer) for human, answer in turns[1:]]
        for human, answer in turns:
            assert known[image, human.removeprefix("<image>\n")] == answer


@pytest.mark.parametrize("kind", [by_answer, by_colour])
def test_questions_of_both_kinds(kind: Kind) -> None:
    questions = load_questions("train")
    asked = {image: [q for q in questions if q.image_id == image] for image in range(50)}
    usable = usable_images(asked, kind)
    assert 20 < len(usable) < 50
    for image in usable:
        chosen = balanced(asked[image], kind, random.Random(0))
        kinds = [kind(question) for question in chosen]
        assert 1 <= kinds.count(True) <= 2
        assert 1 <= kinds.count(False) <= 2
        assert kinds.count(None) <= 2
        assert len({question.text for question in chosen}) == len(chosen)


def test_kinds_of_questions() -> None:
    questions = [VqaQuestion(0, 0, text, answer) for text, answer in SORTED]
    assert [by_answer(question) for question in questions] == [True, False, False, None]
    assert [by_colour(question) for question in questions] == [True, True, None, None]


@pytest.mark.slow
def test_questions_are_the_official_test_questions(data: Path) -> None:
    expected = [[q.text, q.answer, q.image_id] for q in load_questions("test") if q.image_id < 3]
    assert _read(data / "questions.json") == expected


@pytest.mark.slow
def test_validation_images_are_held_out(tmp_path: Path) -> None:
    arguments = ["--output_dir", str(tmp_path), "--images_by_answer", "3800", "--validation_images"]
    assert main([*arguments, "300"]) == 0
    assert main([*arguments, "200"]) == 0
    asked = {f"{image}.png" for _, _, image in _read(tmp_path / "validation.json")}
    shown = {record["image"] for record in _read(tmp_path / "instruct.json") + _read(tmp_path / "captions.json")}
    assert {file.name for file in (tmp_path / "validation").iterdir()} == asked
    training = {file.name for file in (tmp_path / "train").iterdir()}
    assert shown <= training
    assert not asked & training
    assert len(asked) == 200
    assert len(asked | training) == 4000
    texts = {record["id"].rpartition("-")[2] + ".png" for record in _read(tmp_path / "reading.json")}
    assert texts <= training


def test_all_images_cannot_be_held_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--output_dir", str(tmp_path), "--validation_images", "4000"]) == 2
    assert "Cannot hold out 4000 of 4000 images" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_images_repeat_when_there_are_too_few(tmp_path: Path) -> None:
    main(["--output_dir", str(tmp_path), "--texts", "0", "--images_by_answer", "0", "--images_by_colour", "3000"])
    images = [record["image"] for record in _read(tmp_path / "instruct.json")]
    assert len(images) == 3000
    assert len(set(images)) == 1811  # the others lack questions about the colour shown, or about another
