"""The stage scripts, run by bash; LLaVA's own parser reads the arguments that they pass to deepspeed."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import transformers

from tests.llava_patch.tiny import ROOT, run_forked

SCRIPTS = ROOT / "llava_patch" / "scripts"
PARSE = """
import json, sys, llava_patch
llava_patch.install()
import transformers
from llava.train.train import DataArguments, ModelArguments, TrainingArguments
arguments = [word for word in sys.argv[1:]]
arguments[arguments.index("--bf16") + 1] = arguments[arguments.index("--tf32") + 1] = "False"  # without a GPU
arguments[arguments.index("--deepspeed") : arguments.index("--deepspeed") + 2] = ["--use_cpu", "True"]
model, data, training = transformers.HfArgumentParser(
    (ModelArguments, DataArguments, TrainingArguments)
).parse_args_into_dataclasses(arguments)
print(json.dumps({**vars(model), **vars(data), **{key: str(value) for key, value in vars(training).items()}}))
"""

WARMUP = {"WARMUP": "--warmup_ratio 0.03"} if transformers.__version__ < "5" else {}  # see the comments of the scripts


def arguments_of(script: str, folder: Path) -> list[str]:
    """Arguments that a script passes to `deepspeed`."""
    echo = folder / "deepspeed"
    echo.write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    echo.chmod(0o755)
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"} | WARMUP
    return subprocess.run(
        [SCRIPTS / script], env=environment, capture_output=True, text=True, check=True
    ).stdout.splitlines()


def parsed(script: str, folder: Path) -> dict[str, Any]:
    """These arguments as LLaVA's dataclasses."""
    words = arguments_of(script, folder)
    assert words[:3] == ["--module", "llava_patch", "llava.train.train_mem"]
    (folder / "parse.py").write_text(PARSE)
    printed = run_forked(folder / "parse.py", *words[3:], printed=folder / "printed.txt")
    return json.loads(printed.strip().splitlines()[-1])


@pytest.mark.slow
def test_the_arguments_are_those_of_llava_1_5(llava: None, tmp_path: Path) -> None:
    pretrain = parsed("pretrain.sh", tmp_path)
    assert pretrain["vision_tower"] == "sparseformer-clip-l"
    assert pretrain["tune_mm_mlp_adapter"]
    assert (pretrain["learning_rate"], pretrain["per_device_train_batch_size"]) == ("0.001", "32")
    assert pretrain["warmup_ratio" if WARMUP else "warmup_steps"] == "0.03"


@pytest.mark.slow
def test_the_lora_script_only_changes_some_arguments(llava: None, tmp_path: Path) -> None:
    full, lora = parsed("finetune.sh", tmp_path), parsed("finetune_lora.sh", tmp_path)
    assert {key for key in full if full[key] != lora[key]} <= {
        "lora_enable", "lora_r", "lora_alpha", "mm_projector_lr", "learning_rate", "output_dir", "logging_dir",
        "run_name",
    }  # fmt: skip
    assert (full["learning_rate"], lora["learning_rate"]) == ("2e-05", "0.0002")
    assert full["image_aspect_ratio"] == "pad"
