"""MVBench: its files, parts of videos, the official prompt and scores."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from eval import intervals
from eval.benchmarks.videos import mvbench
from eval.scoring.protocol import Video
from sparse_vlm.errors import UserError
from tests.eval.benchmarks.anchors import write_json
from tests.eval.benchmarks.test_damaged_files import damaged

TASKS: dict[str, list[dict[str, Any]]] = {
    "action_sequence": [
        {
            "video": "ZS9XR.mp4",
            "question": "What happened after the person took the food?",
            "candidates": ["Ate the medicine.", "Tidied up the blanket.", "Put down the cup.", "Took the box."],
            "answer": "Ate the medicine.",
            "start": 11.1,
            "end": 20,
        }
    ],
    "object_shuffle": [
        {"video": "video_1.mp4", "question": "Where?", "candidates": ["left", "right"], "answer": "right"},
        {"video": "video_1.mp4", "question": "Where?", "candidates": ["up", "up", "down"], "answer": "up"},
    ],
}


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    (tmp_path / "json").mkdir()
    for name, records in TASKS.items():
        write_json(tmp_path / f"json/{name}.json", records)
    return tmp_path / "json"


def test_questions(tasks: Path, tmp_path: Path) -> None:
    questions = mvbench.load_questions(tasks, tmp_path)
    assert [question.id for question in questions] == ["action_sequence/0", "object_shuffle/0", "object_shuffle/1"]
    assert questions[0].text == (
        "Carefully watch the video and pay attention to the cause and sequence of events, the detail and movement of "
        "objects, and the action and pose of persons. Based on your observations, select the best option that "
        "accurately addresses the question.\nQuestion: What happened after the person took the food?\nOptions:\n"
        "(A) Ate the medicine.\n(B) Tidied up the blanket.\n(C) Put down the cup.\n(D) Took the box.\n"
        "Only give the best option."
    )
    assert questions[0].image == Video(tmp_path / "star/Charades_v1_480/ZS9XR.mp4", (11.1, 20))
    assert questions[1].image == Video(tmp_path / "perception/videos/video_1.mp4")
    (tmp_path / "data0613/perception/videos").mkdir(parents=True)
    (tmp_path / "data0613/perception/videos/video_1.mp4").touch()
    later = Video(tmp_path / "data0613/perception/videos/video_1.mp4")
    assert mvbench.load_questions(tasks / "object_shuffle.json", tmp_path)[0].image == later
    assert mvbench.BENCHMARK.protocol(questions).startswith("MVBench, 2 of 20 tasks")


@pytest.mark.parametrize(
    ("text", "read", "officially_right"),
    [
        ("(A) Ate the medicine.", "A", True),
        ("A", "A", True),
        ("a.", "A", True),
        ("A) Ate", "A", True),
        ("(A)\n(B) as well", "A", True),
        ("(B) Tidied", "B", False),
        ("(A): Ate", "A", True),
        ("A: Ate", None, False),
        ("Option A", None, False),
        ("ate the medicine", None, False),
        ("", None, True),
        ("(", None, True),
        (".", None, True),
        ("(A)(B)", None, True),
        ("(E) other", None, False),  # there is no such option
    ],
)
def test_the_official_rule(text: str, read: str | None, officially_right: bool, tasks: Path) -> None:
    question = mvbench.load_questions(tasks, None)[0]
    [known] = mvbench.read_known([question], write_json(tasks / "action_sequence.json", TASKS["action_sequence"]))
    assert mvbench.is_right(text, "A") == officially_right
    marked = mvbench.mark(question, text, known)
    assert (marked.read, marked.credit) == (read, float(read == "A"))


def test_scores(tasks: Path) -> None:
    questions = mvbench.load_questions(tasks, None)
    scores = mvbench.BENCHMARK.score(questions, ["(A) Ate", "(A)", ""], tasks)
    assert {path: score.value for path, score in scores.items()} == {
        ("accuracy",): 1 / 3,
        ("accuracy_official",): 2 / 3,
        ("accuracy_by_task", "action_sequence"): 1,
        ("accuracy_by_task", "object_shuffle"): 0,
        ("accuracy_official_by_task", "action_sequence"): 1,
        ("accuracy_official_by_task", "object_shuffle"): 1 / 2,
    }
    last_of_equal_options = mvbench.BENCHMARK.score(questions, ["A", "B", "B"], tasks)
    assert last_of_equal_options["accuracy",].value == 1
    known = mvbench.read_known(questions, tasks)
    assert list(mvbench.BENCHMARK.floors(questions, known)) == ["always B"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"answer": "other"}, 'the "answer" \'other\' is not among the "candidates"'),
        ({"candidates": ["Ate the medicine."]}, "two or more options"),
        ({"start": None}, '"start" must be a number of seconds'),
        ({"start": 30}, "from 30 to 20 s ends before it starts"),
    ],
)
def test_bad_records(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    file = write_json(tmp_path / "action_sequence.json", [TASKS["action_sequence"][0] | change])
    with pytest.raises(UserError, match=said):
        mvbench.load_questions(file, None)


def test_bad_files(tasks: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has none of MVBench's tasks"):
        mvbench.load_questions(tmp_path, None)
    with pytest.raises(UserError, match="is not named after one of MVBench's tasks"):
        mvbench.load_questions(write_json(tmp_path / "all.json", []), None)
    with pytest.raises(UserError, match="annotates 1 questions that were not asked"):
        mvbench.read_known(mvbench.load_questions(tasks / "object_shuffle.json", None), tasks)


def test_a_damaged_file_is_a_one_line_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "RESAMPLES", 2)
    draw, sentences = random.Random(0), []
    file = tmp_path / "action_sequence.json"
    for _ in range(60):
        file.write_text(json.dumps(damaged(TASKS["action_sequence"] * 2, draw)))
        try:
            questions = mvbench.load_questions(file, None)
            mvbench.BENCHMARK.score(questions, ["A"] * len(questions), file)
        except UserError as error:
            sentences.append(str(error))
    assert len(sentences) > 20
    assert not any("\n" in sentence for sentence in sentences)
