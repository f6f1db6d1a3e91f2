"""Logs of lmms-eval are scored like other answers: the question of each line, and refused logs.

The lines are those that lmms-eval 0.7.3 writes; tests/integrations/test_lmms_eval.py scores a log of the real package.
"""

from pathlib import Path
from typing import Any

import pytest

from eval.lmms_log import read_answers_or_log
from eval.report import make_report
from eval.scoring.protocol import Question
from eval.selection import BENCHMARKS
from sparse_vlm.errors import UserError
from tests.eval.benchmarks.anchors import write_lines
from tests.eval.benchmarks.test_damaged_files import FILES, write

ASKED = "Answer the question using a single word or phrase."


def logged(position: int, words: str, answer: str, **metrics: Any) -> dict[str, Any]:
    line = {"doc_id": position, "target": "?", "input": f"{words}\n{ASKED}", "filtered_resps": [answer]}
    return line | {"token_counts": [{"output_tokens": 1}], "doc_hash": "c0ffee"} | metrics


def test_the_id_in_a_metric_decides(tmp_path: Path) -> None:
    questions = [Question(id_, f"Is {id_} so?\n{ASKED}", None) for id_ in (11, 12)]
    lines = [
        logged(0, "is it 12?", "no", exact_match=1.0, submission={"question_id": 12, "answer": "no"}),
        logged(1, "is it 11?", "yes", exact_match=0.0, submission={"question_id": "11", "answer": "yes"}),
    ]
    found = read_answers_or_log(write_lines(tmp_path / "log.jsonl", lines), questions)
    assert [(answer.question_id, answer.text) for answer in found] == [(12, "no"), ("11", "yes")]


def test_without_ids_position_and_words_decide(tmp_path: Path) -> None:
    """As in GQA, whose metric is a number. Some tasks capitalize the question, and write words before it."""
    questions = [Question(f"q{i}", f"what is number {i}?\n{ASKED}", None) for i in range(3)]
    lines = [logged(i, f"Look. What is number {i}?", str(i), exact_match=1.0) for i in (2, 0)]
    found = read_answers_or_log(write_lines(tmp_path / "log.jsonl", lines), questions)
    assert [(answer.question_id, answer.text) for answer in found] == [("q2", "2"), ("q0", "0")]


def test_ids_of_other_files_give_way_to_position(tmp_path: Path) -> None:
    """TextVQA's ids in LLaVA's question file are those of the images."""
    questions = [Question("image", f"which {i}?", None) for i in range(2)]
    lines = [logged(i, f"Which {i}?", str(i), submission={"question_id": 34602 + i}) for i in (1, 0)]
    found = read_answers_or_log(write_lines(tmp_path / "log.jsonl", lines), questions)
    assert [(answer.prompt, answer.text) for answer in found] == [("which 1?", "1"), ("which 0?", "0")]


@pytest.mark.parametrize("answer", ["red", ["red"], [["red"]]])
def test_versions_put_the_answer_into_lists(tmp_path: Path, answer: Any) -> None:
    line = logged(0, "which?", "") | {"filtered_resps": answer}
    (found,) = read_answers_or_log(write_lines(tmp_path / "log.jsonl", [line]), [Question(0, "which?", None)])
    assert found.text == "red"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"filtered_resps": ["a", "b"]}, "line 1 has 2 answers, but one can be scored: run lmms-eval without repeats"),
        ({"filtered_resps": []}, "line 1 has 0 answers"),
        ({"filtered_resps": [3]}, 'line 1: "filtered_resps" is 3, expected an answer'),
        ({"filtered_resps": [[["a", 0.5], False]]}, "line 1 has 2 answers"),
        ({"doc_id": 7}, '"doc_id" is 7, but the benchmark has 1 questions'),
        ({"doc_id": -1}, '"doc_id" is -1'),
        ({"doc_id": "0"}, '"doc_id" must be of type int'),
        ({"input": "another?"}, "line 1 asks 'another.', but question 0 of the benchmark is 'which.'.* order are"),
        ({"input": None}, '"input" must be of type str'),
    ],
)
def test_other_logs_are_refused(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    log = write_lines(tmp_path / "log.jsonl", [logged(0, "which?", "red") | change])
    with pytest.raises(UserError, match=sentence):
        read_answers_or_log(log, [Question(0, "which?", None)])


# benchmark -> what lmms-eval's line has beside position, words and answer, by id and answer
METRICS: dict[str, Any] = {
    "vqav2": lambda id_, answer: {"exact_match": 0.3, "submission": {"question_id": id_, "answer": answer}},
    "gqa": lambda id_, answer: {"exact_match": 0.0},
    "textvqa": lambda id_, answer: {"exact_match": 0.0, "submission": {"question_id": id_, "answer": answer}},
    "vizwiz": lambda id_, answer: {"exact_match": 0.0, "submission": {"image": id_, "answer": answer}},
    "pope": lambda id_, answer: {
        name: {"question_id": str(id_), "score": 1.0, "prediction": answer, "ground_truth": "yes"}
        for name in ("pope_accuracy", "pope_f1_score")
    },
    "seed_bench": lambda id_, answer: {"seed_all": {"pred": answer[0], "answer": "A", "question_id": id_}},
}


@pytest.mark.parametrize("name", METRICS)
def test_a_log_has_the_scores_of_the_same_answers(name: str, tmp_path: Path) -> None:
    content, annotations, ids = FILES[name]
    file = tmp_path / ("coco_pope_random.json" if name == "pope" else "questions.json")
    write(file, content, lines=name == "pope")
    for known, annotated in annotations.items():
        write(tmp_path / known, annotated, lines=name == "pope")
    known_path = tmp_path if annotations else file
    answers = ["yes" if name == "pope" else "A" if name == "seed_bench" else "red", "no"]
    words = [question.text.split("\n")[0] for question in BENCHMARKS[name].load_questions(file, None)]
    lines = [
        logged(place, text, answer, **METRICS[name](id_, answer))
        for place, (id_, text, answer) in enumerate(zip(ids, words, answers, strict=True))
    ]
    plain = [{"question_id": id_, "text": answer} for id_, answer in zip(ids, answers, strict=True)]
    ours, theirs = (
        make_report(name, write_lines(tmp_path / f"{kind}.jsonl", records), questions=file, annotations=known_path)
        for kind, records in (("plain", plain), ("log", list(reversed(lines))))
    )
    assert theirs["scores"] == ours["scores"]
    assert theirs["model_id"] == ""


def test_all_categories_of_pope_in_one_log(tmp_path: Path) -> None:
    """The official files number their questions alike; lmms-eval's task holds all three."""
    expected = {"random": "yes", "popular": "no", "adversarial": "yes"}
    lines = []
    for category, answer in expected.items():
        write(
            tmp_path / f"coco_pope_{category}.json",
            [{"question_id": 1, "image": "1.jpg", "text": f"Is there a {category}?", "label": "yes"}],
            lines=True,
        )
        lines.append(logged(len(lines), f"Is there a {category}?", answer, pope_accuracy={"question_id": "1"}))
    report = make_report("pope", write_lines(tmp_path / "log.jsonl", lines), questions=tmp_path, annotations=tmp_path)
    found = {category: scores["accuracy"] for category, scores in report["scores"].items()}
    assert found == {"random": 1, "popular": 0, "adversarial": 1}
