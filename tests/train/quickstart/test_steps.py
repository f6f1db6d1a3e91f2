"""The quickstart's list of commands."""

from collections.abc import Callable
from pathlib import Path

import pytest

from train.pipeline import Step
from train.quickstart.paths import Paths
from train.quickstart.steps import FULL, all_steps, reads_test_split

pytest.importorskip("easy_vqa")


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., list[Step]]:
    """Return the steps."""

    def made(compare: bool = False) -> list[Step]:
        monkeypatch.setattr("train.quickstart.steps.packaged_llm", lambda: Path("smollm2.gguf"))
        return all_steps(Paths(tmp_path), FULL, compare)

    return made


def test_no_step_asks_for_a_precision(steps: Callable[..., list[Step]]) -> None:
    """Each stage takes what is fast on its processor."""
    assert not [step.name for step in steps(True) if "--bf16" in step.arguments]


def test_a_comparison_follows_the_quickstart(steps: Callable[..., list[Step]]) -> None:
    alone, compared = steps(), steps(True)
    assert compared[: len(alone)] == alone
    names = [step.name for step in compared]
    assert len(set(names)) == len(names)
    assert names[len(alone) :] == [*(f"dense_{name}" for name in names[4 : len(alone)]), "step_time", "first_token"]


def test_only_the_report_uses_test_data(steps: Callable[..., list[Step]], tmp_path: Path) -> None:
    """Steps that train, or whose results are trained on, do not read them."""
    readers = [step.name for step in steps(True) if reads_test_split(step, Paths(tmp_path))]
    evaluations = ["evaluate", "evaluate_no_image", "score"]
    assert readers == ["zero_shot", *evaluations, *(f"dense_{name}" for name in evaluations)]
    for step in steps(True):
        others = [argument for argument in step.arguments if "test" in argument.replace(str(tmp_path), "")]
        assert step.name in readers or not others, others
