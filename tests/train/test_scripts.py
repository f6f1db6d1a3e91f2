"""The shell scripts: their options and files exist."""

import io
import json
import os
import random
import re
import subprocess
import tarfile
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from sparse_vlm.encoder import SparseFormer
from tests.forked import ROOT
from tests.forking_python import forking_python
from train.align import AlignArguments
from train.instruct import InstructArguments
from train.language.data_arguments import DataArguments
from train.language.vlm import ModelArguments
from train.vision.bootstrap_arguments import ARGUMENTS as BOOTSTRAP

OPTIONS_OF_OTHER_COMMANDS = {"encoder", "train_images", "test_images", "output"}  # eval.encoders.probe and dense
SCRIPTS = sorted((ROOT / "train" / "scripts").glob("*.sh"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_every_option_exists(script: Path) -> None:
    text = script.read_text()
    stage = AlignArguments if "align" in script.name else InstructArguments
    kinds = BOOTSTRAP if "train.bootstrap" in text else (stage, ModelArguments, DataArguments)
    known = {field.name for kind in kinds for field in fields(kind)} | OPTIONS_OF_OTHER_COMMANDS
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
    assert [script.name for script in SCRIPTS] == ["align.sh", "instruct.sh", "instruct_lora.sh", "photographs.sh"]


@pytest.mark.slow
def test_the_photographs_script_runs_from_weights_to_measurements(tmp_path: Path) -> None:
    """DINOv2-S with random weights on shards of coloured images, on the CPU; a second call finds everything done."""
    torch.manual_seed(0)
    weights, photos = tmp_path / "dinov2.safetensors", tmp_path / "photos"
    save_file(timm.create_model("vit_small_patch14_dinov2").state_dict(), weights)
    photos.mkdir()
    for name in (*(f"train-0{index}" for index in range(6)), "val-00", "val-01"):
        write_shard(photos / f"{name}.tar", name)
    environment = {"WEIGHTS": weights, "PHOTOS": photos, "OUT": tmp_path / "out", "BATCH": 2, "STEPS": 1, "STEPS224": 1}
    words = "--use_cpu True --eval_samples 4 --eval_steps 1 --save_steps 1 --logging_steps 1 --statistics_images 4"
    command = ["bash", str(ROOT / "train/scripts/photographs.sh"), *words.split()]
    settings = os.environ | {name: str(value) for name, value in environment.items()}
    with TemporaryDirectory() as folder, forking_python(Path(folder)):
        for _ in range(2):
            path = f"{folder}:{os.environ['PATH']}"
            done = subprocess.run(command, env=settings | {"PATH": path}, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    out = tmp_path / "out"
    assert SparseFormer.from_pretrained(out / "224").config.preprocessing.crop == 224
    probe = json.loads((out / "probe.json").read_text())
    assert set(probe["encoders"]) == {"teacher", "student", "student_64_tokens"}
    assert (out / "dense.json").is_file()


def write_shard(file: Path, seed: str) -> None:
    """Write twelve images in two classes."""
    draw = random.Random(seed)
    with tarfile.open(file, "w") as shard:
        for index in range(12):
            data = io.BytesIO()
            colour = tuple(draw.randrange(256) for _ in range(3))
            Image.new("RGB", (40, 40), colour).save(data, "JPEG")
            member = tarfile.TarInfo(f"class{index % 2}/{file.stem}_{index}.jpg")
            member.size = len(data.getvalue())
            data.seek(0)
            shard.addfile(member, data)
