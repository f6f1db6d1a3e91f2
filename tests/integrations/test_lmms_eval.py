"""`lmms-eval --model sparse_vlm` with the real package, on a local task made from easy-VQA."""

import importlib.util
import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

from eval.benchmarks.easy_vqa import exact_match
from eval.score import main as score
from sparse_vlm.data import easy_vqa as dataset
from sparse_vlm.image_files import open_image
from sparse_vlm.vlm.answering import Answerer
from sparse_vlm.vlm.chat import answer
from tests.eval.benchmarks.anchors import write_lines

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("lmms_eval") is None,
    reason="needs the package lmms-eval, which is in no extra that tests need",
)
QUESTIONS = 24
TASK = """\
task: easy_vqa_local
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.images
doc_to_text: question
doc_to_target: answer
generation_kwargs: {{max_new_tokens: 6, temperature: 0, do_sample: false}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
UTILS = """\
from PIL import Image


def images(doc):
    return [Image.open(path) for path in doc["images"]]
"""


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """Folder of a task with questions about one image, about none and about two."""
    images = dataset.split_folder("test") / "images"
    rows = []
    for question in dataset.load_questions("test")[:QUESTIONS]:
        path = str(dataset.image_path(images, question.image_id))
        paths = ([path], [], [path, path])[question.id % 3 if question.id < 6 else 0]
        rows.append({"question": question.text, "answer": question.answer, "images": paths})
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / "easy_vqa_local.yaml").write_text(TASK.format(data=data))
    (tmp_path / "task" / "utils.py").write_text(UTILS)
    return tmp_path / "task"


def test_the_entry_point_is_installed() -> None:
    (found,) = [entry for entry in entry_points(group="lmms_eval.models") if entry.name == "sparse_vlm"]
    assert found.load()().model_id == "sparse_vlm"


def run_lmms_eval(arguments: str, task: Path, output: Path) -> subprocess.CompletedProcess[str]:
    command = ["--model", "sparse_vlm", "--model_args", arguments, "--tasks", "easy_vqa_local"]
    command += ["--include_path", str(task), "--batch_size", "8", "--device", "cpu"]
    command += ["--log_samples", "--output_path", str(output)]
    offline = {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HOME": str(output.parent / "hf"),
        "OMP_NUM_THREADS": "1",
    }
    program = [sys.executable, "-c", "from lmms_eval.cli.dispatch import main; main()"]
    return subprocess.run([*program, *command], env=os.environ | offline, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("visual_tokens", [None, 4])
def test_lmms_eval_logs_our_answers(
    worded_vlm_dir: Path, task: Path, answerer: Answerer, tmp_path: Path, visual_tokens: int | None
) -> None:
    arguments = f"pretrained={worded_vlm_dir},dtype=float32" + (
        f",visual_tokens={visual_tokens}" if visual_tokens else ""
    )
    result = run_lmms_eval(arguments, task, tmp_path / "out")
    assert result.returncode == 0, result.stderr
    (samples,) = (tmp_path / "out").rglob("*samples*.jsonl")
    logged = [json.loads(line) for line in samples.read_text().splitlines()]
    assert len(logged) == QUESTIONS
    rows = [json.loads(line) for line in (task.parent / "data.jsonl").read_text().splitlines()]
    for sample in logged:
        row = rows[sample["doc_id"]]
        images = [open_image(path) for path in row["images"]]
        expected = answer(answerer.model, answerer.processor, images, row["question"], 6, visual_tokens=visual_tokens)
        assert sample["filtered_resps"] == expected
    (results,) = (tmp_path / "out").rglob("*results.json")
    value = json.loads(results.read_text())["results"]["easy_vqa_local"]["exact_match,none"]
    right = [exact_match(sample["filtered_resps"], rows[sample["doc_id"]]["answer"]) for sample in logged]
    assert value == pytest.approx(sum(right) / QUESTIONS)
    ours = score_log(samples, rows, tmp_path)
    assert ours["scores"]["accuracy"] == pytest.approx(value)
    assert ours["questions"] == QUESTIONS


def score_log(samples: Path, rows: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    """Score lmms-eval's log with our own scorer, by position: the metric of this task repeats no id."""
    lines = [
        {"question_id": f"q{place}", "text": row["question"], "answer": row["answer"], "category": "all"}
        | ({"image": row["images"][0]} if row["images"] else {})
        for place, row in enumerate(rows)
    ]
    questions = write_lines(folder / "questions.jsonl", lines)
    arguments = ["short_answers", "--questions", questions, "--answers", samples, "--output", folder / "report.json"]
    assert score(list(map(str, arguments))) == 0
    return json.loads((folder / "report.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        ("16.5", "a whole number of visual tokens, at least 1, got 16.5"),
        ("5000", "exceeds the 2048 positions"),
    ],
)
def test_bad_numbers_of_visual_tokens_are_refused(
    worded_vlm_dir: Path, task: Path, tmp_path: Path, typed: str, sentence: str
) -> None:
    result = run_lmms_eval(f"pretrained={worded_vlm_dir},visual_tokens={typed}", task, tmp_path / "out")
    assert sentence in result.stdout + result.stderr
    assert not list((tmp_path / "out").rglob("*results.json"))
