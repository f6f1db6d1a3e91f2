"""Official data: some in tests/fixtures, the rest in ../shared, which a user's checkout does not have."""

import gzip
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from sparse_vlm.data.instructions import SHORT_ANSWER

FIXTURES = Path(__file__).parents[2] / "fixtures"
SHARED = Path(__file__).parents[4] / "shared" / "data" / "eval"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data/eval")


def unpack_pope(folder: Path) -> Path:
    """Write POPE's random questions and labels and LLaVA-1.5-13B's released answers (2910 each) into `folder`."""
    for packed in (FIXTURES / "pope").glob("*.gz"):
        (folder / packed.stem).write_bytes(gzip.decompress(packed.read_bytes()))
    return folder


def unpack_mme(folder: Path) -> Path:
    """Write MME's right answers and the beginnings of LaVIN's answers as templates/, llava_mme.jsonl and lavin.jsonl.

    Questions and images have numbers in place of their words and names, which are not ours to redistribute.
    """
    tasks = json.loads(gzip.decompress((FIXTURES / "mme" / "lavin.json.gz").read_bytes()))
    (folder / "templates").mkdir()
    questions, answers = [], []
    for task, rows in tasks.items():
        template = []
        for index, (label, said) in enumerate(rows):
            image, words = f"{index // 2}.jpg", f"Is it number {index}?"
            template.append(f"{image}\t{words} Please answer yes or no.\t{label}\n")
            line = {"question_id": f"{task}/{image}", "image": f"{task}/{image}", "category": task}
            questions.append(line | {"text": f"{words}\n{SHORT_ANSWER}"})
            answers.append({"question_id": line["question_id"], "prompt": questions[-1]["text"], "text": said})
        (folder / "templates" / f"{task}.txt").write_text("".join(template))
    write_lines(folder / "llava_mme.jsonl", questions)
    write_lines(folder / "lavin.jsonl", answers)
    return folder


def unpack_scienceqa(folder: Path) -> Path:
    """Write ScienceQA's right letters and LLaVA-1.5-13B's answers as llava_test_CQM-A.json and answers.jsonl.

    The questions' words and options are left out: they are not ours to redistribute.
    """
    rows = json.loads(gzip.decompress((FIXTURES / "scienceqa" / "llava-v1.5-13b.json.gz").read_bytes()))
    records = [
        {"id": str(id_), "conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": letter}]}
        | ({"image": f"{id_}/image.png"} if has_image else {})
        for id_, has_image, letter, _ in rows
    ]
    write_json(folder / "llava_test_CQM-A.json", records)
    write_lines(folder / "answers.jsonl", [{"question_id": str(id_), "text": said} for id_, _, _, said in rows])
    return folder


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> Path:
    """Write a JSON-lines file and return its path."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def write_json(path: Path, content: Any) -> Path:
    """Write a JSON file and return its path."""
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def ten(*answers: str) -> list[dict[str, Any]]:
    """Return ten annotators' answers; the last of `answers` is repeated."""
    filled = [*answers, *[answers[-1]] * (10 - len(answers))]
    return [{"answer": answer, "answer_confidence": "yes", "answer_id": i} for i, answer in enumerate(filled, 1)]


def values(scores: Any) -> dict[tuple[str, ...], float]:
    return {path: score.value for path, score in scores.items()}
