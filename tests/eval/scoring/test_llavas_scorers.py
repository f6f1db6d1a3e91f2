"""Agreement with the scorers in LLaVA's package, on answers of all kinds to made-up questions."""

import importlib.util
import random
import re
import runpy
import sys
from pathlib import Path
from types import ModuleType

import pytest

from eval.report import make_report
from eval.scoring.human_answers import evalai_accuracy
from eval.scoring.vqa_text import CONTRACTIONS, simplify_evalai
from tests.eval.benchmarks.anchors import write_json, write_lines

LLAVA = importlib.util.find_spec("llava")  # finds the folder; importing the package would take seconds
pytestmark = [
    pytest.mark.skipif(LLAVA is None, reason="needs the package llava-torch"),
    # LLaVA's scripts do not close their files
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
ANSWERS = [
    "Yes", "No", "no", "NO", "yes.", "Not", "not", "There is no dog", "There is, not. Yes", "nothing", "A no-go",
    "Yes, no", "No, there is", "Yes. No", "", ". No", " no ", "no\n", "Yes\nno", "I do not know", "none", "no,",
    "n,o", "A", "B", "C", "D", "E", "F", "A.", "B. ", "C. three", "B.two", "The answer is B.", "The answer is C",
    "The answer is A. The answer is B.", "So the answer is D.", "The answer is D.\nIt is.", "a", "(B)", "FAILED",
    "E. five", "B: two",
]  # fmt: skip


def script(name: str) -> str:
    assert LLAVA is not None
    assert LLAVA.submodule_search_locations is not None
    return str(Path(LLAVA.submodule_search_locations[0]) / "eval" / f"{name}.py")


def run(name: str, arguments: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(script(name), run_name="__main__")


def test_pope(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    draw = random.Random(0)
    questions, answers = [], []
    (tmp_path / "coco").mkdir()
    for category in ("adversarial", "popular", "random"):
        labels = []
        for _ in range(120):
            line = {"image": f"{draw.randrange(20)}.jpg", "text": f"Is there a {len(questions)} in the imange?"}
            labels.append(line | {"question_id": len(labels) + 1, "label": draw.choice(["yes", "no"])})
            id_ = len(questions)
            questions.append(line | {"question_id": id_, "text": f"{line['text']}\nShortly.", "category": category})
            answers.append({"question_id": id_, "prompt": questions[-1]["text"], "text": draw.choice(ANSWERS)})
        write_lines(tmp_path / "coco" / f"coco_pope_{category}.json", labels)
    files = [write_lines(tmp_path / "q.jsonl", questions), write_lines(tmp_path / "a.jsonl", answers)]
    arguments = ["--annotation-dir", tmp_path / "coco", "--question-file", files[0], "--result-file", files[1]]
    run("eval_pope", arguments, monkeypatch)
    printed = re.split("Category: ", capsys.readouterr().out)[1:]
    report = make_report("pope", files[1], questions=files[0], annotations=tmp_path / "coco")
    assert len(printed) == 3
    for part in printed:
        scores = report["scores"][part.split(",")[0]]
        names = {"accuracy": "Accuracy", "precision": "Precision", "recall": "Recall", "f1": "F1 score"}
        for ours, theirs in (names | {"yes_ratio": "Yes ratio"}).items():
            assert f"{theirs}: {scores[ours]}\n" in part


def test_scienceqa(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    draw = random.Random(0)
    problems, records, answers = {}, [], []
    for number in range(300):
        right, choices = draw.randrange(2), draw.randint(2, 5)
        problems[str(number)] = {"split": "test", "answer": right, "choices": ["x"] * choices}
        image = {"image": f"{number}.png"} if number % 2 else {}
        mark = "<image>\n" if image else ""
        turns = [{"from": "human", "value": f"{mark}Which?"}, {"from": "gpt", "value": "AB"[right]}]
        records.append({"id": str(number), "conversations": turns} | image)
        answers.append({"question_id": str(number), "prompt": f"{mark}Which?", "text": draw.choice(ANSWERS)})
    write_json(tmp_path / "problems.json", problems)
    write_json(tmp_path / "pid_splits.json", {"test": list(problems)})
    files = [write_json(tmp_path / "q.json", records), write_lines(tmp_path / "a.jsonl", answers)]
    outputs = ["--output-file", tmp_path / "o.json", "--output-result", tmp_path / "r.json"]
    run("eval_science_qa", ["--base-dir", tmp_path, "--result-file", files[1], *outputs], monkeypatch)
    scores = make_report("scienceqa", files[1], questions=files[0], annotations=tmp_path)["scores"]
    expected = f"Accuracy: {100 * scores['accuracy']:.2f}%, IMG-Accuracy: {100 * scores['accuracy_image']:.2f}%"
    assert expected in capsys.readouterr().out
    assert 0.05 < scores["accuracy"] < 0.5


@pytest.fixture(scope="module")
def m4c() -> ModuleType:
    """LLaVA's copy of EvalAI's rules."""
    spec = importlib.util.spec_from_file_location("m4c_evaluator", script("m4c_evaluator"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_evalais_form(m4c: ModuleType) -> None:
    draw, official = random.Random(0), m4c.EvalAIAnswerProcessor()
    words = [*CONTRACTIONS, *CONTRACTIONS.values(), *""";/[]"{}()=+\\_-><@`,?!'.\n\t""", "x- ", " -x"]
    words += [
        "a",
        "an",
        "the",
        "one",
        "ten",
        "none",
        "two",
        "Red",
        "1,000",
        "1,0",
        "1.5",
        ".5",
        "a.b",
        "-y",
        "é",
        "dog's",
        "'s",
    ]
    words += ["let's", "Im", "Ive"]
    for _ in range(6000):
        text = draw.choice(["", " "]).join(draw.choices(words, k=draw.randrange(6)))
        assert simplify_evalai(text) == official(text)


def test_evalais_accuracy(m4c: ModuleType) -> None:
    draw, official = random.Random(0), m4c.TextVQAAccuracyEvaluator()
    words = ["red", "Red", "red.", "a red", "1", "one", "dog", "the dog", "cat"]
    for _ in range(150):
        answers, prediction = draw.choices(words, k=10), draw.choice(words)
        score = official.eval_pred_list([{"pred_answer": prediction, "gt_answers": answers}])
        assert evalai_accuracy(prediction, answers) == pytest.approx(score, abs=1e-12)
