"""The shell scripts: their options and files exist."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from tests.train.launch import ROOT
from train.align import AlignArguments
from train.instruct import InstructArguments
from train.language.data import DataArguments
from train.language.vlm import ModelArguments

SCRIPTS = sorted((ROOT / "train" / "scripts").glob("*.sh"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_every_option_exists(script: Path) -> None:
    text = script.read_text()
    stage = AlignArguments if "align" in script.name else InstructArguments
    known = {field.name for kind in (stage, ModelArguments, DataArguments) for field in fields(kind)}
    used = set(re.findall(r"--(\w+) ", text)) - {"num_gpus", "module", "chat_template"}
    assert used
    assert used <= known
    files = [ROOT / name for name in re.findall(r'"\$clone/([^"]+)"', text)]
    files += [script.parent / name for name in re.findall(r'"\$\(dirname "\$0"\)/(\w[^"]+)"', text)]
    assert files
    assert all(file.is_file() for file in files)


def test_the_hours_in_the_documentation_follow_from_the_cost() -> None:
    """docs/training.md describes the calculation."""
    text = (ROOT / "docs" / "training.md").read_text()
    rows = re.findall(r"^\| [\w.-]+ \| ([\d.e]+) \| (.+) \|$", text, re.MULTILINE)
    assert len(rows) == 3
    for parameters, cells in rows:
        expected = []
        for samples, flop, words in ((558_128, 4, 20), (665_298, 8, 250), (665_298, 6, 250)):
            for visual, gmacs in ((63, 14.8), (576, 191.0)):
                one = flop * float(parameters) * (visual + words) + 2e9 * gmacs
                expected.append(samples * one / (8 * 312e12 * 0.3) / 3600)
        stated = [float(hours) for hours in re.findall(r"[\d.]+", cells)]
        assert stated == [round(hours, 1) for hours in expected]


def test_each_stage_has_a_script() -> None:
    assert [script.name for script in SCRIPTS] == ["align.sh", "instruct.sh", "instruct_lora.sh"]
