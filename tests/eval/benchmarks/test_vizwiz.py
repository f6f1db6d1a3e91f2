"""VizWiz: official and LLaVA's question files, scores, submissions."""

import json
from pathlib import Path

from eval.benchmarks import vizwiz
from eval.scoring.protocol import Question
from tests.eval.benchmarks.anchors import SHARED, needs_shared, ten, values, write_json, write_lines


def test_a_file_of_llava(tmp_path: Path) -> None:
    """Its ids are numbers; those of the official file are image names."""
    line = {"question_id": 0, "image": "VizWiz_test_00000000.jpg", "text": f"What is this?\n{vizwiz.INSTRUCTION}"}
    questions = vizwiz.load_questions(write_lines(tmp_path / "llava_test.jsonl", [line]), Path("test"))
    image = Path("test/VizWiz_test_00000000.jpg")
    assert questions == [Question(0, f"What is this?\n{vizwiz.INSTRUCTION}", image)]
    records = [{"image": image.name, "question": "What?", "answer_type": "other", "answers": ten("mug")}]
    file = write_json(tmp_path / "val.json", records)
    assert values(vizwiz.BENCHMARK.score(questions, ["mug"], file))["accuracy",] == 1


@needs_shared
def test_the_published_llava_file() -> None:
    images = vizwiz.load_questions(SHARED / "questions" / "llava_test.jsonl", Path("test"))
    assert images[0].image == Path("test/VizWiz_test_00000000.jpg")
    assert images[0].text.endswith(vizwiz.INSTRUCTION)


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
