"""The list of commands, and the choice between them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from sparse_vlm.encoder import SparseFormer, SparseFormerConfig
from sparse_vlm.errors import UserError
from train.studies.photographs.choice import choose
from train.studies.photographs.paths import DENSE, STUDENT, Paths
from train.studies.photographs.settings import Settings, check_tokens
from train.studies.photographs.steps import reads_test_photographs, report_steps, search_steps

SETTINGS = Settings(
    encoder="encoder",
    teacher="timm:vit_small_patch14_dinov2",
    teacher_layer=10,
    image_size=112,
    photographs="shards",
    training_shards="train-{00..01}.tar",
    validation_shards="val-00.tar",
    test_shards="val-01.tar",
    tokens=(16, 64),
    llm="llm",
    feature_layer=-2,
    learning_rates=(3e-4, 1e-4),
    training_images=20,
    validation_images=10,
    test_images=10,
    texts=4,
    word_start=4,
    align_steps=1,
    conversations=8,
    save_steps=2,
    seed=0,
    cpu=True,
)


def test_only_the_report_reads_test_photographs(tmp_path: Path) -> None:
    """Neither training nor a choice does: the test photographs are not even unpacked before."""
    paths = Paths(tmp_path)
    search = search_steps(SETTINGS, paths)
    report = report_steps(SETTINGS, paths, {STUDENT: 1e-4, DENSE: 3e-4}, probe=True)
    assert len({step.name for step in search + report}) == len(search + report)
    for step in search:
        assert not reads_test_photographs(step, SETTINGS, paths)
        words = [word.replace(str(tmp_path), "") for word in step.arguments]
        assert not [word for word in words if "test" in word or "val-01" in word or "blank" in word]
    assert report[0].name == "data_test"
    assert [step.name for step in report if reads_test_photographs(step, SETTINGS, paths)] == [
        step.name for step in report
    ]
    assert not [step for step in report if "train.align" in step.arguments or "train.instruct" in step.arguments]


def test_both_sides_train_alike(tmp_path: Path) -> None:
    """They differ in the tower, the numbers of its tokens and the folders, and in nothing else."""
    steps = {step.name: step for step in search_steps(SETTINGS, Paths(tmp_path))}
    tokens = ["--visual_tokens", "16,64", "--token_density", "uniform"]
    for name in ("align", "instruct_0.0001", "instruct_0.0003"):
        student = [word for word in steps[f"student_{name}"].arguments if word not in tokens]
        dense = list(steps[f"dense_{name}"].arguments)
        assert set(tokens) <= set(steps[f"student_{name}"].arguments)
        assert [w.replace("student/reading", "dense/built").replace("student", "dense") for w in student] == dense
    assert str(tmp_path / "student" / "reading") in steps["dense_build"].arguments  # the LLM of both has read
    assert list(steps["dense_build"].arguments[-4:]) == ["--image_size", "112", "--teacher_layer", "10"]


def test_the_highest_validation_accuracy_is_chosen(tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    accuracies = {
        (STUDENT, 1e-4): (0.2, 0.7),
        (STUDENT, 3e-4): (0.5, 0.5),
        (DENSE, 1e-4): (0.6,),
        (DENSE, 3e-4): (0.6,),
    }
    for (side, rate), values in accuracies.items():
        for count, value in zip((16, 64) if side == STUDENT else (None,), values, strict=True):
            file = paths.scores(side, rate, "validation", count)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps({"scores": {"accuracy": value}}))
            decoy = paths.scores(side, rate, "test", count)  # never read for the choice
            decoy.write_text(json.dumps({"scores": {"accuracy": 1 - value}}))
    chosen = choose(SETTINGS, paths)
    assert chosen[STUDENT]["learning_rate"] == 3e-4
    assert chosen[STUDENT]["validation"] == {"0.0001": pytest.approx(0.45), "0.0003": 0.5}
    assert chosen[DENSE]["learning_rate"] == 1e-4  # of equal ones the lowest


def test_numbers_of_tokens_must_be_trained(tiny_config: SparseFormerConfig) -> None:
    encoder = SparseFormer(replace(tiny_config, trained_tokens="4-6"))
    check_tokens(encoder, (4, 6), 64)
    with pytest.raises(UserError, match="was not trained with 9 tokens but with 4-6"):
        check_tokens(encoder, (4, 9), 64)
    with pytest.raises(UserError, match="sees images of 64 pixels, so --image_size 112"):
        check_tokens(encoder, (4,), 112)
