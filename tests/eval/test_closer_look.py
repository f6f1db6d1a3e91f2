"""`python -m eval.closer_look` on the tiny model: each way has its tokens and wording; bad questions are refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from eval.closer_look import MAX_NEW_TOKENS, SmallQuestion, Way, ask, main, read_small_questions, score, table_rows
from sparse_vlm.vlm.answering import Answerer
from sparse_vlm.vlm.chat import GREEDY, answer

QUESTION = {
    "image": "0.png",
    "in_words": "what color is the small circle?",
    "in_region": "what color is the small shape in <region>?",
    "box": [0.0, 0.25, 0.5, 0.75],
    "answer": "red",
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with questions.json and three images; the boxes and shapes differ."""
    folder = tmp_path_factory.mktemp("closer")
    records = []
    for number, (shape, colour) in enumerate((("circle", "red"), ("triangle", "teal"), ("circle", "blue"))):
        image = Image.radial_gradient("L").convert("RGB")
        image.paste(colour, (20 * number, 10, 20 * number + 60, 70))
        image.save(folder / f"{number}.png")
        box = [0.1 * number, 0.0, 0.1 * number + 0.5, 0.5]
        words = f"what color is the small {shape}?"
        records += [{**QUESTION, "image": f"{number}.png", "in_words": words, "box": box, "answer": colour}]
    (folder / "questions.json").write_text(json.dumps(records))
    return folder


@pytest.fixture(scope="module")
def questions(files: Path) -> list[SmallQuestion]:
    return read_small_questions(files / "questions.json", files)


def _command(model: Path, files: Path, output: Path, *more: str) -> list[str]:
    paths = ["--model", str(model), "--questions", str(files / "questions.json"), "--images", str(files)]
    return [*paths, "--output", str(output), "--device", "cpu", *more]


def test_three_ways_with_their_tokens(
    vlm_dir: Path, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "closer_look.json"
    more = ("--visual_tokens", "4", "--region_tokens", "2", "--many_tokens", "9", "--dtype", "bfloat16")
    assert main(_command(vlm_dir, files, output, *more)) == 0
    result = json.loads(output.read_text())
    assert result["dtype"] == "bfloat16"
    assert [(way["name"], way["visual_tokens"]) for way in result["ways"]] == [
        ("4", 4),
        ("4 + 2 in the region", 6),
        ("9", 9),
    ]
    assert [len(texts) for texts in result["answers"].values()] == [3, 3, 3]
    assert "4 + 2 in" in capsys.readouterr().out


def test_without_options_the_model_decides(vlm_dir: Path, files: Path, tmp_path: Path, answerer: Answerer) -> None:
    output = tmp_path / "closer_look.json"
    assert main(_command(vlm_dir, files, output, "--limit", "1")) == 0
    few, region = answerer.processor.num_image_tokens, answerer.processor.region_tokens
    result = json.loads(output.read_text())
    assert [way["visual_tokens"] for way in result["ways"]] == [few, few + region, 64]
    assert result["questions"] == 1


def test_in_words_the_answers_are_those_of_a_chat(questions: list[SmallQuestion], answerer: Answerer) -> None:
    model, processor = answerer.model, answerer.processor
    found = ask(model, processor, questions, Way(4))
    for question, text in zip(questions, found, strict=True):
        with Image.open(question.image) as image:
            assert text == answer(model, processor, image, question.in_words, MAX_NEW_TOKENS, visual_tokens=4)
    assert len(set(found)) > 1


def test_in_a_region_each_question_looks_at_its_own_box(questions: list[SmallQuestion], answerer: Answerer) -> None:
    model: Any = answerer.model
    processor = answerer.processor
    found = ask(model, processor, questions, Way(4, processor.region_tokens))
    assert found == ask(model, processor, questions, Way(4, processor.region_tokens), batch_size=1)
    template = "<user><image>\nwhat color is the small shape in <region>?<end><assistant>"
    for question, text in zip(questions, found, strict=True):
        with Image.open(question.image) as image:
            inputs = processor(
                text=template, images=image, visual_tokens=4, regions=[question.box], return_tensors="pt"
            )
        with torch.inference_mode():
            ids = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, **GREEDY)
        assert text == processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def test_accuracy_and_difference_from_the_first_way(files: Path) -> None:
    asked = [
        SmallQuestion(files / f"{number // 2}.png", "", "", (0.0, 0.0, 1.0, 1.0), colour)
        for number, colour in enumerate(["red", "red", "teal", "red"])
    ]
    answers = {Way(4): ["red", "no", "no", "no"], Way(4, 9): ["Red.", "red", "teal", "red"]}
    result = score(asked, answers)
    assert result["images"] == 2
    assert result["most_frequent_answer"] == 0.75
    few, region = result["ways"]
    assert (few["accuracy"], few["difference"], few["difference_95"]) == (0.25, 0, [0, 0])
    assert few["accuracy_95"] == [0, 0.5]
    assert (region["accuracy"], region["difference"], region["difference_95"]) == (1, 0.75, [0.5, 1])
    assert table_rows(result)[1:] == [
        ["4", "4", "25.0%", "0.0% – 50.0%", "+0.0%", "+0.0% – +0.0%"],
        ["4 + 9 in the region", "13", "100.0%", "100.0% – 100.0%", "+75.0%", "+50.0% – +100.0%"],
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "must hold a non-empty list"),
        ({"0": QUESTION}, "must hold a non-empty list"),
        (["red"], "question 0 must be an object, not 'red'."),
        ([QUESTION, {**QUESTION, "answer": ""}], "question 1: \"answer\" must be a text, got ''."),
        ([{**QUESTION, "image": 0}], 'question 0: "image" must be a text, got 0.'),
        ([{**QUESTION, "in_region": QUESTION["in_words"]}], 'question 0: "in_region" must have one <region>'),
        ([{**QUESTION, "in_words": QUESTION["in_region"]}], 'question 0: "in_region" must have one <region>'),
        ([{**QUESTION, "box": None}], 'question 0: "box" must be [x1, y1, x2, y2], got None.'),
        ([{**QUESTION, "box": [0.5, 0, 0.2, 1]}], "question 0: A box lies inside the image"),
        ([{**QUESTION, "image": "9.png"}], "9.png does not exist; 1 of 1 images are missing"),
    ],
)
def test_bad_questions(
    content: Any, message: str, vlm_dir: Path, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "bad.json"
    file.write_text(json.dumps(content))
    words = ["--model", str(vlm_dir), "--questions", str(file), "--images", str(files)]
    assert main([*words, "--output", str(tmp_path / "out.json")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "out.json").exists()


def test_counts_are_checked(vlm_dir: Path, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(_command(vlm_dir, files, tmp_path / "out.json", "--many_tokens", "0")) == 2
    assert capsys.readouterr().err == "error: --many_tokens must be at least 1, got 0.\n"
