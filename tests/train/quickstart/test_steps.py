"""The quickstart's list of commands."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import HfArgumentParser

from train.pipeline import Step
from train.quickstart.paths import Paths
from train.quickstart.steps import FULL, all_steps, reads_test_split
from train.stages.arguments import StageArguments

pytest.importorskip("easy_vqa")


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., list[Step]]:
    """Return the steps on a CPU with these capabilities."""

    def made(compare: bool = False, **capabilities: bool) -> list[Step]:
        monkeypatch.setattr("train.quickstart.steps.packaged_llm", lambda: Path("smollm2.gguf"))
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
        return all_steps(Paths(tmp_path), FULL, compare)

    return made


def bf16(steps: list[Step]) -> list[str]:
    """Return the steps that train in bf16."""
    parser = HfArgumentParser(StageArguments)  # type: ignore[arg-type]
    training = [step for step in steps if "--output_dir" in step.arguments and "--save_steps" in step.arguments]
    assert training
    parsed = {
        step.name: parser.parse_args_into_dataclasses(list(step.arguments[2:]), return_remaining_strings=True)
        for step in training
    }
    return [name for name, (arguments, *_) in parsed.items() if arguments.bf16]


def test_bf16_is_for_cpus_with_amx(steps: Callable[..., list[Step]]) -> None:
    language = ["read", "align", "instruct"]
    assert bf16(steps(amx_bf16=True)) == language
    assert bf16(steps(True, amx_bf16=True)) == [*language, *(f"dense_{name}" for name in language)]
    assert bf16(steps(amx_bf16=False, avx512_f=True)) == bf16(steps()) == []  # an ARM CPU has no such entry


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
