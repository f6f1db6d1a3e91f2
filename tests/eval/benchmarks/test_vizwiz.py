"""VizWiz: official and LLaVA's question files, scores, submissions."""

import json
from pathlib import Path

from eval.benchmarks import textvqa, vizwiz
from eval.scoring.protocol import Question
from tests.eval.benchmarks.anchors import SHARED, needs_shared, ten, values, write_json


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
    assert values(vizwiz.BENCHMARK.score(questions, ["a mug", "Unanswerable"], file)) == {
        ("accuracy",): 0.8,
        ("accuracy_by_type", "other"): 0.6,
        ("accuracy_by_type", "unanswerable"): 1,
    }
    assert (
        vizwiz.BENCHMARK.floors(questions, vizwiz.read_known(questions, file))["most frequent answer"]
        == ["unanswerable"] * 2
    )
    vizwiz.write_submission(file, questions, ["A mug.", ""], tmp_path / "s.json")
    assert json.loads((tmp_path / "s.json").read_text())[0] == {"image": "a.jpg", "answer": "mug"}
