"""TextVQA: questions with and without OCR hints, official and LLaVA's question files, submissions."""

import json
from pathlib import Path

import pytest

from eval.benchmarks import textvqa
from eval.scoring.protocol import Question
from sparse_vlm.data.instructions import SHORT_ANSWER
from sparse_vlm.errors import UserError
from tests.eval.benchmarks.anchors import SHARED, needs_shared, values, write_json, write_lines

TEXTVQA = {
    "data": [
        {"question_id": 1, "image_id": "x", "question": "What Brand?", "answers": ["nokia"] * 10},
        {"question_id": 2, "image_id": "x", "question": "What year?", "answers": ["1999"] * 2 + ["1998"] * 8},
    ]
}


@pytest.mark.parametrize("hints", ["\nReference OCR token: NOKIA, 1999", ""])
def test_textvqa_with_and_without_ocr_hints(tmp_path: Path, hints: str) -> None:
    """LLaVA's ids are those of images; the protocol line says whether prompts have hints."""
    annotations = write_json(tmp_path / "val.json", TEXTVQA)
    lines = [
        {"question_id": "x", "image": "x.jpg", "text": f"{question}{hints}\n{SHORT_ANSWER}"}
        for question in ("What year?", "What brand?")
    ]
    questions = textvqa.load_questions(write_lines(tmp_path / "llava.jsonl", lines), None)
    assert values(textvqa.BENCHMARK.score(questions, ["1999", "Nokia."], annotations)) == {("accuracy",): 0.8}
    assert ("OCR hints in 2 of 2 prompts" if hints else "without OCR hints") in textvqa.protocol(questions)
    with pytest.raises(UserError, match="has no question ids"):
        textvqa.write_submission(None, questions, ["", ""], tmp_path / "s.json")


def test_the_official_file(tmp_path: Path) -> None:
    file = write_json(tmp_path / "val.json", TEXTVQA)
    questions = textvqa.load_questions(file, Path("train_images"))
    assert questions[0] == Question(1, f"What Brand?\n{SHORT_ANSWER}", Path("train_images/x.jpg"))
    assert values(textvqa.BENCHMARK.score(questions, ["NOKIA", "1999"], file)) == {("accuracy",): 0.8}
    textvqa.write_submission(file, questions, ["NOKIA", "The 90s"], tmp_path / "s.json")
    assert json.loads((tmp_path / "s.json").read_text())[1] == {"question_id": 2, "answer": "90s"}
    twice = {"data": [{**TEXTVQA["data"][0], "question_id": 3, "answers": ["sony"] * 10}, *TEXTVQA["data"]]}
    file = write_json(tmp_path / "twice.json", twice)  # the same words about the same image, other annotators
    scores = textvqa.BENCHMARK.score(textvqa.load_questions(file, None), ["sony", "nokia", "1998"], file)
    assert scores["accuracy",].value == 1
    nine = {"data": [{**record, "answers": record["answers"][:9]} for record in TEXTVQA["data"]]}
    with pytest.raises(UserError, match="has 9 answers, not ten texts"):
        textvqa.BENCHMARK.score(questions, ["", ""], write_json(tmp_path / "nine.json", nine))


@needs_shared
def test_the_published_llava_file() -> None:
    questions = textvqa.load_questions(SHARED / "questions" / "llava_textvqa_val_v051_ocr.jsonl", None)
    assert len(questions) == 20
    assert "OCR hints in 20 of 20" in textvqa.protocol(questions)
