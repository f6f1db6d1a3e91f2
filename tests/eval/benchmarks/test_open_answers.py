"""VQAv2, GQA, TextVQA and VizWiz: official and LLaVA's question files, scores, submissions."""

import json
from pathlib import Path
from typing import Any

import pytest

from eval.benchmarks import gqa, textvqa, vizwiz, vqav2
from eval.score import main
from eval.scoring.llava_format import SHORT_ANSWER
from eval.scoring.protocol import Question
from sparse_vlm.errors import UserError
from tests.eval.benchmarks.anchors import SHARED, needs_shared, write_json, write_lines

OFFICIAL = SHARED / "vqa-official-format"


def values(scores: Any) -> dict[tuple[str, ...], float]:
    return {path: score.value for path, score in scores.items()}


def ten(*answers: str) -> list[dict[str, Any]]:
    """Ten annotators' answers, the last of `answers` filling up."""
    filled = [*answers, *[answers[-1]] * (10 - len(answers))]
    return [{"answer": answer, "answer_confidence": "yes", "answer_id": i} for i, answer in enumerate(filled, 1)]


@needs_shared
def test_vqav2s_official_files() -> None:
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
    assert values(vqav2.score(questions, ["Red", "two."], tmp_path)) == expected | submitted
    assert vqav2.floors(questions, annotations) == {"most frequent answer": ["2", "2"]}


def test_vqav2_to_the_letter_and_as_submitted(tmp_path: Path) -> None:
    """Where all ten agree the official scorer compares to the letter; LLaVA submits small letters without a stop."""
    record = {"question_id": 51, "answer_type": "yes/no", "answers": ten("yes")}
    annotations = write_json(tmp_path / "a.json", {"annotations": [record]})
    questions = vqav2.load_questions(
        write_json(tmp_path / "q.json", VQAV2 | {"questions": VQAV2["questions"][1:]}), None
    )
    scores = vqav2.score(questions, ["Yes."], annotations)
    assert (scores["accuracy",].value, scores["accuracy_submitted",].value) == (0, 1)
    assert vqav2.BENCHMARK.published is not None
    assert vqav2.BENCHMARK.published[1](scores) == 100


def test_vqav2_without_annotations_is_written_for_the_server(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = VQAV2 | {"questions": VQAV2["questions"][1:]}
    write_json(tmp_path / "all.json", VQAV2)
    answers = write_lines(tmp_path / "answers.jsonl", [{"question_id": 51, "text": "Two dogs."}])
    arguments = ["vqav2", "--questions", str(write_json(tmp_path / "q.json", asked)), "--answers", str(answers)]
    assert main(arguments) == 2
    assert "needs --annotations" in capsys.readouterr().err
    submission = tmp_path / "out" / "submission.json"
    assert main([*arguments, "--submission", str(submission)]) == 0
    assert json.loads(submission.read_text()) == [{"question_id": 51, "answer": "2 dogs"}]
    arguments += ["--submission", str(submission), "--submission-questions"]
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
        vqav2.score(questions, ["red", "2"], write_json(tmp_path / "a.json", content))


@needs_shared
def test_gqas_official_and_llavas_files() -> None:
    official = gqa.load_questions(OFFICIAL / "gqa" / "questions.json", OFFICIAL / "images" / "gqa")
    text = f"What is hanging above the chalkboard?\n{SHORT_ANSWER}"
    assert official == [Question("202218649", text, OFFICIAL / "images" / "gqa" / "n578564.jpg")]
    scores = values(gqa.score(official, ["Picture."], OFFICIAL / "gqa" / "questions.json"))
    assert scores["accuracy",] == scores["accuracy_by_form", "open"] == scores["accuracy_by_meaning", "rel"] == 1
    assert values(gqa.score(official, ["the picture"], OFFICIAL / "gqa" / "questions.json"))["accuracy",] == 0
    llavas = gqa.load_questions(SHARED / "questions" / "llava_gqa_testdev_balanced.jsonl", Path("images"))
    assert len(llavas) == 20
    assert llavas[0] == Question("201307251", f"Is it overcast?\n{SHORT_ANSWER}", Path("images/n161313.jpg"))


def gqa_record(question: str, answer: str, structural: str, balanced: bool = True) -> dict[str, Any]:
    types = {"structural": structural, "semantic": "attr"}
    return {"question": question, "imageId": "n1", "answer": answer, "isBalanced": balanced, "types": types}


def test_gqa_counts_balanced_questions(tmp_path: Path) -> None:
    records = {
        "1": gqa_record("What?", "cat", "query"),
        "2": gqa_record("Is it?", "yes", "verify"),
        "3": gqa_record("Is it not?", "no", "verify", balanced=False),
    }
    file = write_json(tmp_path / "q.json", records)
    questions = gqa.load_questions(file, None)
    scores = gqa.score(questions, ["Cat", "no", "no"], file)
    assert scores["accuracy",].count == 2
    assert values(scores)["accuracy_by_form", "open"] == 1
    assert values(scores)["accuracy_by_form", "binary"] == values(scores)["accuracy_by_structure", "verify"] == 0
    gqa.write_submission(file, questions, ["Cat.", "no", "no"], tmp_path / "s.json")
    assert json.loads((tmp_path / "s.json").read_text())[0] == {"questionId": "1", "prediction": "cat"}
    other = write_json(tmp_path / "other.json", records | {"1": gqa_record("Where?", "left", "query")})
    with pytest.raises(UserError, match=r"another question under id '1': 'Where\?'"):
        gqa.score(questions, ["cat", "yes", "no"], other)


GQA_TREE = {
    "1": gqa_record("What is it?", "cat", "query") | {"groups": {"global": "animal"}, "entailed": ["1", "2", "3"]},
    "2": gqa_record("Is it a cat?", "yes", "verify") | {"groups": {"global": None}, "entailed": ["3"]},
    "3": gqa_record("Is it a dog?", "no", "verify") | {"groups": {"global": None}, "entailed": []},
    "4": gqa_record("What is that?", "dog", "query") | {"groups": {"global": "animal"}, "entailed": []},
}
GQA_STEPS = [
    {"operation": "select", "argument": "cat (1)"},
    {"operation": "filter color", "argument": "red"},
    {"operation": "query", "argument": "name"},
]


def test_gqas_other_numbers(tmp_path: Path) -> None:
    """Worked out by hand from the official scorer's definitions."""
    records = {id_: record | {"semantic": GQA_STEPS} for id_, record in GQA_TREE.items()}
    write_json(tmp_path / "val_all_questions.json", records)
    choices = {id_: {"valid": ["cat", "dog"], "plausible": ["cat"]} for id_ in records}
    questions = gqa.load_questions(tmp_path / "val_all_questions.json", None)
    texts = ["cat", "yes", "yes", "cow"]
    assert values(gqa.score(questions, texts, tmp_path)).keys() & {("validity",), ("plausibility",)} == set()
    write_json(tmp_path / "val_choices.json", choices)
    scores = values(gqa.score(questions, texts, tmp_path))
    assert (scores["validity",], scores["plausibility",]) == (1 / 4, 1 / 4)
    assert scores["consistency",] == (1 / 2 + 0) / 2  # of 1: question 2 right, 3 wrong; of 2: question 3 wrong
    assert scores["distribution",] == (0 + 1) / 1 / 100  # a cat where one is expected, no dog
    assert scores["accuracy_by_steps", "2"] == 0.5  # "query: name" is none
    assert scores["accuracy_by_words", "3"] == 0.5
    assert scores["accuracy_by_words", "4"] == 0.5
    same = values(gqa.score(questions, ["cat", "yes", "no", "dog"], tmp_path))
    assert (same["consistency",], same["distribution",], same["accuracy",]) == (1, 0, 1)
    assert values(gqa.score(questions, ["x"] * 4, tmp_path))["consistency",] == 0
    common = records | {"1": records["1"] | {"types": records["1"]["types"] | {"detailed": "twoCommon"}}}
    write_json(tmp_path / "val_all_questions.json", common)
    assert values(gqa.score(questions, ["color", "x", "x", "x"], tmp_path))["validity",] == 1 / 4
    (tmp_path / "testdev_balanced_questions.json").write_text("{}")
    with pytest.raises(UserError, match=r"has 2 files \*_questions\.json: testdev_balanced.*, val_all"):
        gqa.score(questions, texts, tmp_path)


def test_gqas_consistency_needs_the_entailed_questions(tmp_path: Path) -> None:
    file = write_json(tmp_path / "q.json", {id_: GQA_TREE[id_] for id_ in ("1", "2", "4")})
    scores = values(gqa.score(gqa.load_questions(file, None), ["cat", "yes", "dog"], file))
    assert scores["accuracy",] == 1
    assert ("consistency",) not in scores


TEXTVQA = {
    "data": [
        {"question_id": 1, "image_id": "x", "question": "What Brand?", "answers": ["nokia"] * 10},
        {"question_id": 2, "image_id": "x", "question": "What year?", "answers": ["1999"] * 2 + ["1998"] * 8},
    ]
}


@pytest.mark.parametrize("hints", ["\nReference OCR token: NOKIA, 1999", ""])
def test_textvqa_with_and_without_ocr_hints(tmp_path: Path, hints: str) -> None:
    """LLaVA's ids are pictures; the protocol line says which of the two it was."""
    annotations = write_json(tmp_path / "val.json", TEXTVQA)
    lines = [
        {"question_id": "x", "image": "x.jpg", "text": f"{question}{hints}\n{SHORT_ANSWER}"}
        for question in ("What year?", "What brand?")
    ]
    questions = textvqa.load_questions(write_lines(tmp_path / "llava.jsonl", lines), None)
    assert values(textvqa.score(questions, ["1999", "Nokia."], annotations)) == {("accuracy",): 0.8}
    assert ("OCR hints in 2 of 2 prompts" if hints else "without OCR hints") in textvqa.protocol(questions)
    with pytest.raises(UserError, match="has no question ids"):
        textvqa.write_submission(None, questions, ["", ""], tmp_path / "s.json")


def test_textvqas_official_file(tmp_path: Path) -> None:
    file = write_json(tmp_path / "val.json", TEXTVQA)
    questions = textvqa.load_questions(file, Path("train_images"))
    assert questions[0] == Question(1, f"What Brand?\n{SHORT_ANSWER}", Path("train_images/x.jpg"))
    assert values(textvqa.score(questions, ["NOKIA", "1999"], file)) == {("accuracy",): 0.8}
    textvqa.write_submission(file, questions, ["NOKIA", "The 90s"], tmp_path / "s.json")
    assert json.loads((tmp_path / "s.json").read_text())[1] == {"question_id": 2, "answer": "90s"}
    twice = {"data": [{**TEXTVQA["data"][0], "question_id": 3, "answers": ["sony"] * 10}, *TEXTVQA["data"]]}
    file = write_json(tmp_path / "twice.json", twice)  # the same words about the same picture, other people
    scores = textvqa.score(textvqa.load_questions(file, None), ["sony", "nokia", "1998"], file)
    assert scores["accuracy",].value == 1
    nine = {"data": [{**record, "answers": record["answers"][:9]} for record in TEXTVQA["data"]]}
    with pytest.raises(UserError, match="has 9 answers, not ten texts"):
        textvqa.score(questions, ["", ""], write_json(tmp_path / "nine.json", nine))


@needs_shared
def test_llavas_textvqa_and_vizwiz_files() -> None:
    questions = textvqa.load_questions(SHARED / "questions" / "llava_textvqa_val_v051_ocr.jsonl", None)
    assert len(questions) == 20
    assert "OCR hints in 20 of 20" in textvqa.protocol(questions)
    pictures = vizwiz.load_questions(SHARED / "questions" / "llava_test.jsonl", Path("test"))
    assert pictures[0].image == Path("test/VizWiz_test_00000000.jpg")
    assert pictures[0].text.endswith(vizwiz.INSTRUCTION)


def test_vizwiz(tmp_path: Path) -> None:
    records = [
        {"image": "a.jpg", "question": "What is it?", "answer_type": "other", "answers": ten("mug", "mug", "cup")},
        {"image": "b.jpg", "question": "And?", "answer_type": "unanswerable", "answers": ten("unanswerable")},
    ]
    file = write_json(tmp_path / "val.json", records)
    questions = vizwiz.load_questions(file, Path("val"))
    assert questions[0] == Question("a.jpg", f"What is it?\n{vizwiz.INSTRUCTION}", Path("val/a.jpg"))
    assert values(vizwiz.score(questions, ["a mug", "Unanswerable"], file)) == {
        ("accuracy",): 0.8,
        ("accuracy_by_type", "other"): 0.6,
        ("accuracy_by_type", "unanswerable"): 1,
    }
    assert vizwiz.floors(questions, file)["most frequent answer"] == ["unanswerable"] * 2
    vizwiz.write_submission(file, questions, ["A mug.", ""], tmp_path / "s.json")
    assert json.loads((tmp_path / "s.json").read_text())[0] == {"image": "a.jpg", "answer": "mug"}
