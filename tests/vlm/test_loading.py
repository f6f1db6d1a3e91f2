"""Opening a model directory: through our functions and transformers' Auto classes; damaged directories."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
)

from sparse_vlm.errors import UserError
from sparse_vlm.vlm.chat import encode_prompt
from sparse_vlm.vlm.loading import load_vlm
from tests.forked import run_program
from tests.vlm.conftest import Loaded, is_tied, logits_of


def test_save_and_load_again(vlm: Loaded, tmp_path: Path, images: list[Image.Image]) -> None:
    model, processor = vlm
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, again_processor = load_vlm(tmp_path)
    assert is_tied(model)
    assert is_tied(again)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    inputs = encode_prompt(again_processor, images[0], "What?")
    assert torch.equal(logits_of(again, inputs), logits_of(model, inputs))


@pytest.mark.slow
def test_auto_classes_open_it(vlm: Loaded, vlm_dir: Path, images: list[Image.Image]) -> None:
    model = AutoModelForImageTextToText.from_pretrained(vlm_dir)
    processor = AutoProcessor.from_pretrained(vlm_dir)
    inputs = encode_prompt(processor, images[0], "What?")
    assert torch.equal(logits_of(model, inputs), logits_of(vlm[0], inputs))


OPEN = """
model = AutoModelForImageTextToText.from_pretrained(sys.argv[1])
processor = AutoProcessor.from_pretrained(sys.argv[1])
print(type(model).__name__, type(processor).__name__, processor.num_image_tokens)
"""
OPENED = "SparseVLMForConditionalGeneration SparseVLMProcessor 6"


@pytest.mark.slow
@pytest.mark.parametrize("before", ["", "from transformers.models.llava.modeling_llava import LlavaModel"])
def test_a_fresh_process_opens_it_after_import_sparse_vlm(vlm_dir: Path, before: str) -> None:
    """Through transformers' Auto classes, even if Llava was imported before."""
    program = f"""
import sparse_vlm, sys
assert "transformers" not in sys.modules
{before}
from transformers import AutoModelForImageTextToText, AutoProcessor
"""
    command = [sys.executable, "-c", program + OPEN, str(vlm_dir)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == OPENED


@pytest.mark.slow
def test_a_process_that_has_transformers_opens_it_after_import_sparse_vlm(vlm_dir: Path, tmp_path: Path) -> None:
    program = """
import sys
assert "transformers" in sys.modules and "sparse_vlm" not in sys.modules  # forked from such a process
from transformers import AutoModelForImageTextToText, AutoProcessor
import sparse_vlm
"""
    assert run_program(program + OPEN, str(vlm_dir), folder=tmp_path).splitlines()[-1] == OPENED


def test_load_refuses(tmp_path: Path, encoder_dir: Path, llm_dir: Path, vlm_dir: Path) -> None:
    with pytest.raises(UserError, match=r"There is no model directory .*none"):
        load_vlm(tmp_path / "none")
    with pytest.raises(UserError, match=r"it has no config\.json"):
        load_vlm(tmp_path)
    with pytest.raises(UserError, match=r"type 'sparseformer'.* joins it to an LLM"):
        load_vlm(encoder_dir)
    with pytest.raises(UserError, match="type 'llama', not 'sparse_vlm'"):
        load_vlm(llm_dir)
    (tmp_path / "config.json").write_bytes((vlm_dir / "config.json").read_bytes())
    with pytest.raises(UserError, match="cannot be opened"):
        load_vlm(tmp_path)


def damaged(change: str, directory: Path) -> None:
    """Damage a model directory: remove "FILE", write "FILE=TEXT", or set "PART.FIELD=JSON" in config.json."""
    name, _, value = change.partition("=")
    if name.startswith(("text_config.", "vision_config.")):
        part, field = name.split(".")
        config = json.loads((directory / "config.json").read_text())
        config[part][field] = json.loads(value)
        value, name = json.dumps(config), "config.json"
    if value:
        (directory / name).write_text(value)
    else:
        (directory / name).unlink()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("tokenizer.json", "vlm cannot be opened: Couldn't instantiate the backend tokenizer"),
        ("tokenizer.json={", "vlm cannot be opened: Expecting property name"),
        ("chat_template.jinja", r"vlm is incomplete: it has no chat_template\.jinja"),
        ("config.json=[]", r"config\.json must hold a JSON object, not a list"),
        ('config.json={"model_type": "sparse_vlm"}', "The configuration is incomplete: .*'stem'"),
        ("text_config.hidden_size=64", "vlm cannot be opened: "),
        ('text_config.model_type="nope"', "vlm cannot be opened: .*nope"),
        ('text_config.vocab_size="x"', "vlm cannot be opened: .*vocab_size"),
        ('vision_config.encoder={"stem": 3}', "stem must be a JSON object, got 3"),
    ],
)
def test_a_damaged_model_directory_is_a_one_line_error(
    tmp_path: Path, vlm_dir: Path, change: str, message: str
) -> None:
    damaged(change, shutil.copytree(vlm_dir, tmp_path / "vlm"))
    with pytest.raises(UserError, match=message):
        load_vlm(tmp_path / "vlm")


@pytest.mark.slow
def test_load_names_missing_and_unknown_weights(tmp_path: Path, vlm: Loaded) -> None:
    model, processor = vlm
    weights = {k: v.contiguous() for k, v in model.state_dict().items() if k != "lm_head.weight"}
    weights["model.something"] = weights.pop("model.multi_modal_projector.linear_1.bias")
    model.save_pretrained(tmp_path, state_dict=weights)
    processor.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"missing_keys: .*linear_1.bias; unexpected_keys: .*something"):
        load_vlm(tmp_path)
