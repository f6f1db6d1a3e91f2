"""VQAv2: official and LLaVA's question files, scores, submissions."""

import json
from pathlib import Path

import pytest

from eval.benchmarks import vqav2
from eval.score import main
from sparse_vlm.data.instructions import SHORT_ANSWER
from sparse_vlm.errors import UserError
from tests.eval.benchmarks.anchors import SHARED, needs_shared, ten, values, write_json, write_lines

OFFICIAL = SHARED / "vqa-official-format"


@needs_shared
def test_the_official_files() -> None:
    questions = vqav2.load_questions(OFFICIAL / "vqav2" / "questions.json", OFFICIAL / "images" / "vqav2")
    assert [question.id for question in questions] == [458752000, 458752001, 458752002]
    assert questions[0].image == OFFICIAL / "images" / "vqav2" / "COCO_train2014_000000458752.jpg"
    assert isinstance(questions[0].image, Path)
    assert questions[0].image.is_file()
    assert questions[0].text == f"What is this photo taken looking through?\n{SHORT_ANSWER}"


VQAV2 = {
    "data_subtype": "test-dev2015",
    "questions": [
        {"image_id": 5, "question": "What colour?", "question_id": 50},
        {"image_id": 5, "question": "How many?", "question_id": 51},
    ],
}


VQAV2_ANSWERS = {
    "annotations": [
        {"question_id": 51, "answer_type": "number", "answers": ten("two", "2")},
        {"question_id": 50, "answer_type": "other", "answers": ten("red", "red", "blue")},
    ]
}


def test_vqav2(tmp_path: Path) -> None:
    questions = vqav2.load_questions(write_json(tmp_path / "q.json", VQAV2), Path("test2015"))
    assert questions[0].image == Path("test2015/COCO_test2015_000000000005.jpg")
    annotations = write_json(tmp_path / "v2_mscoco_val2014_annotations.json", VQAV2_ANSWERS)
    expected = {("accuracy",): 0.8, ("accuracy_by_type", "number"): 1, ("accuracy_by_type", "other"): 0.6}
    submitted = {(path[0].replace("accuracy", "accuracy_submitted"), *path[1:]): v for path, v in expected.items()}
    assert values(vqav2.BENCHMARK.score(questions, ["Red", "two."], tmp_path)) == expected | submitted
    assert vqav2.BENCHMARK.floors(questions, vqav2.read_known(questions, annotations)) == {
        "most frequent answer": ["2", "2"]
    }


def test_exact_and_submitted_accuracy(tmp_path: Path) -> None:
    """If all annotators agree, the official scorer compares exactly; LLaVA submits lower case without a full stop."""
    record = {"question_id": 51, "answer_type": "yes/no", "answers": ten("yes")}
    annotations = write_json(tmp_path / "a.json", {"annotations": [record]})
    questions = vqav2.load_questions(
        write_json(tmp_path / "q.json", VQAV2 | {"questions": VQAV2["questions"][1:]}), None
    )
    scores = vqav2.BENCHMARK.score(questions, ["Yes."], annotations)
    assert (scores["accuracy",].value, scores["accuracy_submitted",].value) == (0, 1)
    assert vqav2.BENCHMARK.published is not None
    assert vqav2.BENCHMARK.published[1](scores) == 100


def test_a_submission_needs_no_annotations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = VQAV2 | {"questions": VQAV2["questions"][1:]}
    write_json(tmp_path / "all.json", VQAV2)
    answers = write_lines(tmp_path / "answers.jsonl", [{"question_id": 51, "text": "Two dogs."}])
    arguments = ["vqav2", "--questions", str(write_json(tmp_path / "q.json", asked)), "--answers", str(answers)]
    assert main(arguments) == 2
    assert "needs --annotations" in capsys.readouterr().err
    submission = tmp_path / "out" / "submission.json"
    assert main([*arguments, "--submission", str(submission)]) == 0
    assert json.loads(submission.read_text()) == [{"question_id": 51, "answer": "2 dogs"}]
    arguments += ["--submission", str(submission), "--submission_questions"]
    assert main([*arguments, str(tmp_path / "all.json")]) == 0
    assert json.loads(submission.read_text())[0] == {"question_id": 50, "answer": ""}
    part = write_json(tmp_path / "part.json", VQAV2 | {"questions": VQAV2["questions"][:1]})
    assert main([*arguments, str(part)]) == 2
    assert "lacks 1 of the questions that were asked, e.g. '51'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (VQAV2_ANSWERS["annotations"], '"annotations" is missing'),
        ({"annotations": VQAV2_ANSWERS["annotations"][:1]}, "has no annotation for question id 50"),
        ({"annotations": [{}]}, '"question_id" is missing'),
        ({"annotations": [*VQAV2_ANSWERS["annotations"], {"question_id": 52}]}, "annotates 1 questions .* e.g. '52'"),
    ],
)
def test_vqav2_with_other_annotations(tmp_path: Path, content: object, sentence: str) -> None:
    questions = vqav2.load_questions(write_json(tmp_path / "q.json", VQAV2), None)
    with pytest.raises(UserError, match=sentence):
        vqav2.BENCHMARK.score(questions, ["red", "2"], write_json(tmp_path / "a.json", content))
