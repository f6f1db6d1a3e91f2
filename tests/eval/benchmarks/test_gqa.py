"""GQA: official and LLaVA's question files, scores, submissions."""

import json
from pathlib import Path
from typing import Any

import pytest

from eval.benchmarks import gqa
from eval.scoring.protocol import Question
from sparse_vlm.data.instructions import SHORT_ANSWER
from sparse_vlm.errors import UserError
from tests.eval.benchmarks.anchors import SHARED, needs_shared, values, write_json, write_lines

OFFICIAL = SHARED / "vqa-official-format"


def test_normalize() -> None:
    assert gqa.normalize("Yes.") == "yes"
    assert gqa.normalize("Left..") == "left"
    assert gqa.normalize(" left") == " left"  # the scorer compares exactly


def test_a_file_of_llava(tmp_path: Path) -> None:
    line = {"question_id": "201307251", "image": "n161313.jpg", "text": f"Is it so?\n{SHORT_ANSWER}"}
    file = write_lines(tmp_path / "llava_gqa_testdev_balanced.jsonl", [line | {"category": "default"}])
    expected = Question("201307251", f"Is it so?\n{SHORT_ANSWER}", Path("images/n161313.jpg"))
    assert gqa.load_questions(file, Path("images")) == [expected]


@needs_shared
def test_the_official_files() -> None:
    official = gqa.load_questions(OFFICIAL / "gqa" / "questions.json", OFFICIAL / "images" / "gqa")
    text = f"What is hanging above the chalkboard?\n{SHORT_ANSWER}"
    assert official == [Question("202218649", text, OFFICIAL / "images" / "gqa" / "n578564.jpg")]
    scores = values(gqa.BENCHMARK.score(official, ["Picture."], OFFICIAL / "gqa" / "questions.json"))
    assert scores["accuracy",] == scores["accuracy_by_form", "open"] == scores["accuracy_by_meaning", "rel"] == 1
    assert values(gqa.BENCHMARK.score(official, ["the picture"], OFFICIAL / "gqa" / "questions.json"))["accuracy",] == 0
    llavas = gqa.load_questions(SHARED / "questions" / "llava_gqa_testdev_balanced.jsonl", Path("images"))
    assert len(llavas) == 20
    assert llavas[0] == Question("201307251", f"Is it overcast?\n{SHORT_ANSWER}", Path("images/n161313.jpg"))


def gqa_record(question: str, answer: str, structural: str, balanced: bool = True) -> dict[str, Any]:
    types = {"structural": structural, "semantic": "attr"}
    return {"question": question, "imageId": "n1", "answer": answer, "isBalanced": balanced, "types": types}


def test_only_balanced_questions_count(tmp_path: Path) -> None:
    records = {
        "1": gqa_record("What?", "cat", "query"),
        "2": gqa_record("Is it?", "yes", "verify"),
        "3": gqa_record("Is it not?", "no", "verify", balanced=False),
    }
    file = write_json(tmp_path / "q.json", records)
    questions = gqa.load_questions(file, None)
    scores = gqa.BENCHMARK.score(questions, ["Cat", "no", "no"], file)
    assert scores["accuracy",].count == 2
    assert values(scores)["accuracy_by_form", "open"] == 1
    assert values(scores)["accuracy_by_form", "binary"] == values(scores)["accuracy_by_structure", "verify"] == 0
    gqa.write_submission(file, questions, ["Cat.", "no", "no"], tmp_path / "s.json")
    assert json.loads((tmp_path / "s.json").read_text())[0] == {"questionId": "1", "prediction": "cat"}
    other = write_json(tmp_path / "other.json", records | {"1": gqa_record("Where?", "left", "query")})
    with pytest.raises(UserError, match=r"another question under id '1': 'Where\?'"):
        gqa.BENCHMARK.score(questions, ["cat", "yes", "no"], other)


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


def test_the_other_official_scores(tmp_path: Path) -> None:
    """Worked out by hand from the official scorer's definitions."""
    records = {id_: record | {"semantic": GQA_STEPS} for id_, record in GQA_TREE.items()}
    write_json(tmp_path / "val_all_questions.json", records)
    choices = {id_: {"valid": ["cat", "dog"], "plausible": ["cat"]} for id_ in records}
    questions = gqa.load_questions(tmp_path / "val_all_questions.json", None)
    texts = ["cat", "yes", "yes", "cow"]
    assert values(gqa.BENCHMARK.score(questions, texts, tmp_path)).keys() & {("validity",), ("plausibility",)} == set()
    write_json(tmp_path / "val_choices.json", choices)
    scores = values(gqa.BENCHMARK.score(questions, texts, tmp_path))
    assert (scores["validity",], scores["plausibility",]) == (1 / 4, 1 / 4)
    assert scores["consistency",] == (1 / 2 + 0) / 2  # of 1: question 2 right, 3 wrong; of 2: question 3 wrong
    assert scores["distribution",] == (0 + 1) / 1 / 100  # a cat where one is expected, no dog
    assert scores["accuracy_by_steps", "2"] == 0.5  # "query: name" does not count as a step
    assert scores["accuracy_by_words", "3"] == 0.5
    assert scores["accuracy_by_words", "4"] == 0.5
    same = values(gqa.BENCHMARK.score(questions, ["cat", "yes", "no", "dog"], tmp_path))
    assert (same["consistency",], same["distribution",], same["accuracy",]) == (1, 0, 1)
    assert values(gqa.BENCHMARK.score(questions, ["x"] * 4, tmp_path))["consistency",] == 0
    common = records | {"1": records["1"] | {"types": records["1"]["types"] | {"detailed": "twoCommon"}}}
    write_json(tmp_path / "val_all_questions.json", common)
    assert values(gqa.BENCHMARK.score(questions, ["color", "x", "x", "x"], tmp_path))["validity",] == 1 / 4
    (tmp_path / "testdev_balanced_questions.json").write_text("{}")
    with pytest.raises(UserError, match=r"has 2 files \*_questions\.json: testdev_balanced.*, val_all"):
        gqa.BENCHMARK.score(questions, texts, tmp_path)


def test_consistency_needs_the_entailed_questions(tmp_path: Path) -> None:
    file = write_json(tmp_path / "q.json", {id_: GQA_TREE[id_] for id_ in ("1", "2", "4")})
    scores = values(gqa.BENCHMARK.score(gqa.load_questions(file, None), ["cat", "yes", "dog"], file))
    assert scores["accuracy",] == 1
    assert ("consistency",) not in scores
