"""The real easy-VQA data set: counts, kinds of questions, inferred attributes."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from sparse_vlm.data import easy_vqa
from sparse_vlm.data.easy_vqa import Attributes, VqaQuestion
from sparse_vlm.errors import UserError
from sparse_vlm.image_files import open_image


@pytest.fixture(scope="module")
def training() -> list[VqaQuestion]:
    return easy_vqa.load_questions("train")


@pytest.fixture(scope="module")
def test() -> list[VqaQuestion]:
    return easy_vqa.load_questions("test")


def test_official_counts(training: list[VqaQuestion], test: list[VqaQuestion]) -> None:
    assert (len(training), len(test)) == (38575, 9673)
    assert (len({q.image_id for q in training}), len({q.image_id for q in test})) == (4000, 1000)
    assert [q.id for q in test] == list(range(9673))
    assert {q.answer for q in training} == {*easy_vqa.SHAPES, *easy_vqa.COLOURS, *easy_vqa.YES_NO}


def test_the_kind_of_every_question_is_the_kind_of_its_answer(
    training: list[VqaQuestion], test: list[VqaQuestion]
) -> None:
    answers = {"yes/no": easy_vqa.YES_NO, "colour": easy_vqa.COLOURS, "shape": easy_vqa.SHAPES}
    assert all(q.answer in answers[q.kind] for q in training + test)
    assert Counter(q.kind for q in training)["yes/no"] == 28407  # the dataset's own README
    assert Counter(q.kind for q in test)["yes/no"] == 7136


def test_attributes_follow_for_the_expected_images(training: list[VqaQuestion], test: list[VqaQuestion]) -> None:
    assert len(easy_vqa.attributes_from_questions(training)) == 3578
    assert len(easy_vqa.attributes_from_questions(test)) == 888


def test_attributes_contradict_no_answer(test: list[VqaQuestion]) -> None:
    attributes = easy_vqa.attributes_from_questions(test)
    for question in test:
        if question.image_id in attributes:
            shown = attributes[question.image_id]
            expected = {
                "shape": shown.shape,
                "colour": shown.colour,
                "yes/no": _yes_no(question.text, shown),
            }[question.kind]
            assert question.answer == expected, question


def _yes_no(text: str, shown: Attributes) -> str:
    present = shown.shape in text or shown.colour in text
    negated = " not " in text or " no " in text
    return "yes" if present != negated else "no"


def test_attributes_agree_with_the_pixels(test: list[VqaQuestion]) -> None:
    """The mean colour of an image is nearer to the mean of its own class than to that of any other."""
    attributes = easy_vqa.attributes_from_questions(test)
    folder = easy_vqa.split_folder("test") / "images"
    pixels: dict[str, list[np.ndarray]] = {colour: [] for colour in easy_vqa.COLOURS}
    for image_id, shown in list(attributes.items())[:200]:
        image = np.asarray(open_image(easy_vqa.image_path(folder, image_id)), dtype=float).reshape(-1, 3)
        background = np.median(image, axis=0)
        distance = np.abs(image - background).sum(axis=1)
        pixels[shown.colour].append(image[distance >= np.quantile(distance, 0.99)].mean(axis=0))
    means = np.stack([np.mean(pixels[colour], axis=0) for colour in easy_vqa.COLOURS])
    right = [
        easy_vqa.COLOURS[np.argmin(np.square(means - pixel).sum(axis=1))] == colour
        for colour in easy_vqa.COLOURS
        for pixel in pixels[colour]
    ]
    assert np.mean(right) > 0.9


def test_attributes_follow_by_exclusion() -> None:
    """Two excluded shapes leave the third; the answer "no" to "is no red shape present?" means that there is one."""
    questions = [
        VqaQuestion(0, 7, "is there a circle?", "no"),
        VqaQuestion(1, 7, "is no triangle present?", "yes"),
        VqaQuestion(2, 7, "is no red shape present?", "no"),
        VqaQuestion(3, 8, "what color is the circle?", "teal"),
        VqaQuestion(4, 9, "is there a circle?", "yes"),
    ]
    found = easy_vqa.attributes_from_questions(questions)
    assert found == {7: Attributes("rectangle", "red"), 8: Attributes("circle", "teal")}
    assert found[7].caption == "a red rectangle"
    assert len({shown.caption for shown in easy_vqa.CLASSES}) == 24


def test_held_out_images_are_disjoint_and_complete(training: list[VqaQuestion]) -> None:
    rest, held_out = easy_vqa.hold_out_images(training, images=300, seed=1)
    ids = {q.image_id for q in rest}, {q.image_id for q in held_out}
    assert len(ids[1]) == 300
    assert not ids[0] & ids[1]
    assert sorted(q.id for q in rest + held_out) == [q.id for q in training]
    assert easy_vqa.hold_out_images(training, 300, seed=1)[1] == held_out
    assert easy_vqa.hold_out_images(training, 300, seed=2)[1] != held_out


@pytest.mark.parametrize("images", [0, 4000])
def test_the_number_of_held_out_images_is_checked(training: list[VqaQuestion], images: int) -> None:
    with pytest.raises(UserError, match=f"hold out {images} of 4000"):
        easy_vqa.hold_out_images(training, images)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("[[", "not valid JSON"),
        ("[]", "non-empty list"),
        ('[["q?", "a", 1], ["q?", "a"]]', "entry 1 is"),
        ('[["q?", "a", "1"]]', "entry 0 is"),
        ('[["", "a", 1]]', "entry 0 is"),
    ],
)
def test_malformed_questions_are_named(tmp_path: Path, content: str, sentence: str) -> None:
    file = tmp_path / "questions.json"
    file.write_text(content)
    with pytest.raises(UserError, match=sentence):
        easy_vqa.read_questions(file)
    with pytest.raises(UserError, match="cannot be read"):
        easy_vqa.read_questions(tmp_path / "absent.json")


def test_a_custom_questions_file(tmp_path: Path, training: list[VqaQuestion]) -> None:
    file = tmp_path / "questions.json"
    file.write_text(json.dumps([[q.text, q.answer, q.image_id] for q in training[10:20]]))
    assert [q.text for q in easy_vqa.read_questions(file)] == [q.text for q in training[10:20]]
