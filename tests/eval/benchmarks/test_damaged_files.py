"""Damaged official files or answers give a one-line error and no score."""

import json
import random
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from eval import intervals
from eval.report import make_report
from sparse_vlm.errors import UserError
from tests.eval.benchmarks.anchors import write_lines

TEN = [{"answer": "red", "answer_id": i} for i in range(10)]
GQA = {
    str(i): {
        "question": f"What is {i}?",
        "imageId": "n1",
        "answer": "red",
        "isBalanced": True,
        "types": {"structural": "query", "semantic": "attr", "detailed": "color"},
        "groups": {"global": "color"},
        "entailed": ["0", "1"],
        "semantic": [{"operation": "query", "argument": "name"}],
    }
    for i in range(2)
}
POPE = [{"question_id": i, "image": "1.jpg", "text": f"Is there {i}?", "label": "yes"} for i in range(2)]
TURNS = [{"from": "human", "value": "<image>\nWhich?"}, {"from": "gpt", "value": "A"}]
# benchmark -> question file, annotation files by name (none: the question file), ids
FILES: dict[str, tuple[Any, dict[str, Any], list[Any]]] = {
    "vqav2": (
        {
            "data_subtype": "val2014",
            "questions": [{"image_id": 1, "question": "Which?", "question_id": i} for i in range(2)],
        },
        {
            "annotations.json": {
                "annotations": [{"question_id": i, "answer_type": "other", "answers": TEN} for i in range(2)]
            }
        },
        [0, 1],
    ),
    "gqa": (
        GQA,
        {"t_questions.json": GQA, "t_choices.json": {id_: {"valid": ["red"], "plausible": ["red"]} for id_ in GQA}},
        ["0", "1"],
    ),
    "textvqa": (
        {
            "data": [
                {"question_id": i, "image_id": "x", "question": f"Which {i}?", "answers": ["a"] * 10} for i in range(2)
            ]
        },
        {},
        [0, 1],
    ),
    "vizwiz": (
        [{"image": f"{i}.jpg", "question": "Which?", "answer_type": "other", "answers": TEN} for i in range(2)],
        {},
        ["0.jpg", "1.jpg"],
    ),
    "scienceqa": (
        [{"id": str(i), "image": "a.png", "conversations": TURNS} for i in range(2)],
        {
            "problems.json": {
                str(i): {"split": "test", "answer": 0, "subject": "s", "grade": "grade2"} for i in range(2)
            }
        },
        ["0", "1"],
    ),
    "pope": ([line | {"category": "random"} for line in POPE], {"coco_pope_random.json": POPE}, [0, 1]),
    "seed_bench": (
        {
            "question_type": {"Scene": 1},
            "questions": [
                {"question_id": str(i), "question": "Which?", "data_id": "1", "data_type": "image", "answer": "A"}
                | {"question_type_id": 1}
                | {f"choice_{letter}": letter for letter in "abcd"}
                for i in range(2)
            ],
        },
        {},
        ["0", "1"],
    ),
    "mm_vet": (
        {f"v1_{i}": {"imagename": "a", "question": "Which?", "answer": "a", "capability": ["ocr"]} for i in range(2)},
        {},
        ["v1_0", "v1_1"],
    ),
}
JUNK: list[Any] = [None, 1, -1, 1.5, "x", "", [], {}, [1], {"a": 1}, True, [[]], "nan"]


def places(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path to every value inside."""
    entries = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, inner in entries:
        yield (*path, key)
        yield from places(inner, (*path, key))


def damaged(content: Any, draw: random.Random) -> Any:
    """Return the content with one value missing, replaced, or (in a list) repeated."""
    content = deepcopy(content)
    *way, last = draw.choice(list(places(content)))
    inner = content
    for key in way:
        inner = inner[key]
    kind = draw.random()
    if kind < 0.3:
        del inner[last]
    elif kind < 0.9 or not isinstance(inner, list):
        inner[last] = draw.choice(JUNK)
    else:
        inner.append(deepcopy(inner[last]))
    return content


def write(path: Path, content: Any, lines: bool) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in content) if lines else json.dumps(content))


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_a_one_line_error(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "RESAMPLES", 2)
    draw = random.Random(0)
    questions, annotations, ids = FILES[name]
    file = tmp_path / "q.json"
    sentences = []
    for case in range(120):
        asked = damaged(questions, draw) if case % 3 == 0 else questions
        write(file, asked, lines=name == "pope")
        for known, content in annotations.items():
            write(tmp_path / known, damaged(content, draw) if case % 3 == 1 else content, lines=name == "pope")
        answers = [{"question_id": id_, "text": "0.5" if name == "mm_vet" else "red"} for id_ in ids]
        log = write_lines(tmp_path / "a.jsonl", damaged(answers, draw) if case % 3 == 2 else answers)
        try:
            make_report(
                name,
                log,
                questions=file,
                annotations=tmp_path if annotations else file,
                judgements=log if name == "mm_vet" else None,
            )
        except UserError as error:
            sentences.append(str(error))
    assert len(sentences) > 20
    assert not any("\n" in sentence for sentence in sentences)
