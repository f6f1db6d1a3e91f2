"""train.study: variants become bootstraps, equal ones run once, results become a table and figures."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from sparse_vlm.errors import UserError
from train.stages.command_line import parse_arguments
from train.study import chosen, main, read_study, runs_of
from train.vision.bootstrap_arguments import ARGUMENTS

FOLDER = Path(__file__).parents[2] / "train" / "configs" / "studies"
STUDIES = sorted(set(FOLDER.glob("*.yaml")) - {FOLDER / "base.yaml"})
STUDY = {
    "title": "Test",
    "arguments": {
        "tokens": 4,
        "stem_channels": 8,
        "focus_repeats": 1,
        "max_steps": 1,
        "use_cpu": True,
        "bf16": False,
        "eval_steps": 1,
    },
    "measure": [
        "eval.encoders.neighbours",
        "--teacher",
        "{teacher}",
        "--encoder",
        "{run}",
        "--images",
        "{eval_data_path}",
        "--dtype",
        "float32",
    ],
    "curve": "eval_centered_cosine",
    "groups": {"tokens": {"4": {}, "5": {"tokens": 5}}, "blocks": {"default": {}}},
}


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A study of two runs on six images, which are in images/."""
    (tmp_path / "images").mkdir()
    generator = np.random.default_rng(0)
    for index in range(6):
        pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{index}.png")
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(STUDY, sort_keys=False))
    return file


def words(study: Path, teacher: Path) -> list[str]:
    """Return the command line of a study."""
    images = str(study.parent / "images")
    paths = ["--teacher", str(teacher), "--data_path", images, "--eval_data_path", images]
    return [str(study), "--output_dir", str(study.parent / "out"), *paths]


@pytest.mark.slow
def test_results_of_a_study(
    study: Path, clip_dir: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(study, clip_dir)) == 0
    out = study.parent / "out"
    results = json.loads((out / "study.json").read_text())
    assert [(row["group"], row["variant"]) for row in results] == [
        ("tokens", "4"),
        ("tokens", "5"),
        ("blocks", "default"),
    ]
    assert results[0]["final"] == results[2]["final"] != results[1]["final"]  # the first and the last are the same run
    assert results[0]["curve"] == [[1, results[0]["final"]["centered_cosine"]]]
    assert results[0]["final"]["centered_cosine"] != results[0]["final"]["cosine"]
    assert {"tokens.png", "blocks.png", "study.md"} <= {path.name for path in out.iterdir()}
    assert (out / "study.md").read_text().count("\n| tokens |") == 2
    assert caplog.text.count("$ python -m") == 4  # two runs, each trained and measured
    caplog.clear()
    assert main(words(study, clip_dir)) == 0
    assert "$ python -m" not in caplog.text  # everything is done
    assert main([*words(study, clip_dir), "--max_steps", "2"]) == 2
    assert "was made with max_steps 1, but now it is 2. Choose another" in capsys.readouterr().err


def test_columns_name_numbers_in_what_was_measured() -> None:
    measured = {"cosine": 0.5, "images": 7, "of": {"student": {"knn": 0.25}}}
    assert chosen(measured, {}) == {"cosine": 0.5}
    assert chosen(measured, {"k-NN": "of.student.knn", "n": "images"}) == {"k-NN": 0.25, "n": 7.0}
    for path in ("of.student", "of.teacher.knn", "cosine.mean"):
        with pytest.raises(UserError, match=f"'x' is {path}, but the measurement wrote no number"):
            chosen(measured, {"x": path})


@pytest.mark.slow
def test_a_failing_run_is_a_one_line_error(study: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(words(study, tmp_path / "missing")) == 2
    assert "train.bootstrap failed with exit status 2. Run the study again" in capfd.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("title: x", "is not a study"),
        ("title: x\ngroups: {}", "it has no groups of variants"),
        ("title: x\ngroups: {a: {b: {}}}\nmeasures: []", "unexpected keyword argument 'measures'"),
        ("title: x\ngroups: {a: {b: {}}}\ncurve: loss", "Unknown curve 'loss'"),
        ("title: x\ngroups: {a: {b: {}}}\nbase: none.yaml", "Cannot read the recipe "),
        ("title: [", "is not a study"),
        ("title: x\ngroups: [a]", "do not map groups"),
        ("title: x\ngroups: {a: {b 1: {}, b/1: {tokens: 4}}}", "Two variants would share the folder a-b_1"),
    ],
)
def test_bad_studies(tmp_path: Path, text: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    assert main(words(tmp_path / "bad.yaml", tmp_path)) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_shipped_studies_fit_the_command(file: Path, tmp_path: Path) -> None:
    paths = {"teacher": "t", "data_path": "d", "eval_data_path": "e"}
    runs = runs_of(read_study(file), paths, tmp_path)
    assert len(runs) > 2
    for run in runs:
        flags = [word for name, value in run.arguments.items() for word in (f"--{name}", str(value))]
        student, *_ = parse_arguments(ARGUMENTS, [*flags, "--output_dir", str(run.folder)])
        rois = student.read_rois()
        assert rois is None or len(rois) == int(student.tokens)
