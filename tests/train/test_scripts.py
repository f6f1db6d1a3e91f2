"""The shell scripts: their flags exist, and their files are there."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from tests.train.launch import ROOT
from train.align import AlignArguments
from train.instruct import InstructArguments
from train.vlm import ModelArguments
from train.vlm_data import DataArguments

SCRIPTS = sorted((ROOT / "train" / "scripts").glob("*.sh"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_every_flag_exists(script: Path) -> None:
    text = script.read_text()
    stage = AlignArguments if "align" in script.name else InstructArguments
    known = {field.name for kind in (stage, ModelArguments, DataArguments) for field in fields(kind)}
    used = set(re.findall(r"--(\w+) ", text)) - {"num_gpus", "chat_template"}
    assert used
    assert used <= known
    for name in re.findall(r'"\$\(dirname "\$0"\)/([^"]+)"', text):
        assert (script.parent / name).is_file()


def test_there_is_one_for_each_stage() -> None:
    assert [script.name for script in SCRIPTS] == ["align.sh", "instruct.sh", "instruct_lora.sh"]
