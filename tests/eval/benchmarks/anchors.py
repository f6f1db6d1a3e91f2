"""Where official data lies: some beside these tests, the rest in ../shared, which a user's checkout does not have."""

import gzip
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

FIXTURES = Path(__file__).parents[2] / "fixtures"
SHARED = Path(__file__).parents[4] / "shared" / "data" / "eval"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data/eval")


def unpack_pope(folder: Path) -> Path:
    """POPE's random questions and labels, and LLaVA-1.5-13B's released answers (2910 each), as files in `folder`."""
    for packed in (FIXTURES / "pope").glob("*.gz"):
        (folder / packed.stem).write_bytes(gzip.decompress(packed.read_bytes()))
    return folder


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> Path:
    """A JSON-lines file."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def write_json(path: Path, content: Any) -> Path:
    """A JSON file."""
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def ten(*answers: str) -> list[dict[str, Any]]:
    """Ten annotators' answers, the last of `answers` filling up."""
    filled = [*answers, *[answers[-1]] * (10 - len(answers))]
    return [{"answer": answer, "answer_confidence": "yes", "answer_id": i} for i, answer in enumerate(filled, 1)]


def values(scores: Any) -> dict[tuple[str, ...], float]:
    return {path: score.value for path, score in scores.items()}
