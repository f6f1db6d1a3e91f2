"""Model directories opened by transformers alone, also where sparse_vlm is not installed."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForMultimodalLM, pipeline

import sparse_vlm
from sparse_vlm.vlm.chat import GREEDY, answer, encode_prompt
from sparse_vlm.vlm.dense.any_tower import build_vision_model
from sparse_vlm.vlm.vision import SparseFormerVisionConfig
from tests.forked import run_program
from tests.vlm.conftest import Loaded

QUESTION = "What is shown?"
ALONE = """
import sys
sys.modules["sparse_vlm"] = None  # as if it were not installed
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText, AutoProcessor, dynamic_module_utils, pipeline
source, image, out, copy, dynamic_module_utils.HF_MODULES_CACHE = sys.argv[1:]
model = AutoModelForImageTextToText.from_pretrained(source, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(source, trust_remote_code=True)
messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is shown?"}]}]
text = processor.apply_chat_template(messages, add_generation_prompt=True)
inputs = processor(text=text, images=Image.open(image), add_special_tokens=False, return_tensors="pt")
with torch.no_grad():
    save_file({"logits": model(**inputs).logits}, out)
model.save_pretrained(copy)
processor.save_pretrained(copy)
again = AutoModelForImageTextToText.from_pretrained(copy, trust_remote_code=True)
with torch.no_grad():
    assert torch.equal(again(**inputs).logits, model(**inputs).logits)
"""


@pytest.mark.slow
def test_a_process_without_sparse_vlm(vlm_dir: Path, vlm: Loaded, images: list[Image.Image], tmp_path: Path) -> None:
    images[0].save(tmp_path / "image.png")
    paths = [tmp_path / name for name in ("image.png", "out", "copy", "modules")]
    run_program(ALONE, str(vlm_dir), *map(str, paths), folder=tmp_path)
    model, processor = vlm
    with torch.no_grad():
        expected = model(**encode_prompt(processor, images[0], QUESTION)).logits
    torch.testing.assert_close(load_file(tmp_path / "out")["logits"], expected)


def test_pipeline(vlm_dir: Path, vlm: Loaded, images: list[Image.Image]) -> None:
    ask = pipeline("image-text-to-text", model=str(vlm_dir))
    content = [{"type": "image", "image": images[0]}, {"type": "text", "text": QUESTION}]
    messages = [{"role": "user", "content": content}]
    (result,) = ask(text=messages, max_new_tokens=6, generate_kwargs=dict(GREEDY), return_full_text=False)
    assert result["generated_text"].strip() == answer(*vlm, images[0], QUESTION, max_new_tokens=6)


@pytest.mark.slow
def test_other_auto_classes_and_pipelines(vlm_dir: Path, vlm: Loaded, images: list[Image.Image]) -> None:
    """AutoModelForMultimodalLM and its pipeline, with text before the image, as OpenAI's clients send it."""
    inputs = encode_prompt(vlm[1], images[0], QUESTION)
    model: Any = AutoModelForMultimodalLM.from_pretrained(vlm_dir)
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, vlm[0](**inputs).logits)
    content = [{"type": "text", "text": QUESTION}, {"type": "image", "image": images[0]}]
    expected = answer(*vlm, images[0], QUESTION, max_new_tokens=6)
    for task in ("any-to-any", "image-text-to-text"):
        ask: Any = pipeline(task, model=str(vlm_dir))
        options: Any = {"max_new_tokens": 6, "generate_kwargs": dict(GREEDY), "return_full_text": False}
        (result,) = ask(text=[{"role": "user", "content": content}], **options)
        assert result["generated_text"].strip() == expected


def test_the_base_model(vlm_dir: Path, vlm: Loaded, images: list[Image.Image]) -> None:
    """AutoModel, which servers ask for, from a directory's own code."""
    assert json.loads((vlm_dir / "config.json").read_text())["auto_map"]["AutoModel"].endswith(".SparseVLMModel")
    inputs = encode_prompt(vlm[1], images[0], QUESTION)
    model = AutoModel.from_pretrained(vlm_dir)
    with torch.no_grad():
        assert torch.equal(model(**inputs).last_hidden_state, vlm[0].model(**inputs).last_hidden_state)


def test_configurations_travel_to_the_workers_of_servers(vlm: Loaded) -> None:
    """vLLM pickles configurations with the code of their classes, which must not lead to the code of the encoder."""
    cloudpickle = pytest.importorskip("cloudpickle")
    cloudpickle.register_pickle_by_value(sparse_vlm)
    try:
        data = cloudpickle.dumps(vlm[0].config)
    finally:
        cloudpickle.unregister_pickle_by_value(sparse_vlm)
    assert pickle.loads(data).to_dict() == vlm[0].config.to_dict()


def test_the_vision_model_of_a_copied_class(vlm: Loaded) -> None:
    """There the classes of configurations are copies, which nobody has registered."""
    copied = type("Copied", (SparseFormerVisionConfig,), {})
    made = build_vision_model(copied(**vlm[0].config.vision_config.to_dict()))
    assert type(made) is type(vlm[0].model.vision_tower)


@pytest.mark.parametrize("name", ["config.json", "processor_config.json"])
def test_the_configuration_files_refer_to_the_code(vlm_dir: Path, name: str) -> None:
    text = (vlm_dir / name).read_text()
    assert "sparse_vlm_vlm_" in text
    modules = {path.stem for path in vlm_dir.glob("sparse_vlm_*.py")}
    assert {"sparse_vlm_vlm_modeling", "sparse_vlm_vlm_processing", "sparse_vlm_encoder_model"} <= modules


def test_imports_in_texts_are_left_alone(vlm_dir: Path) -> None:
    cards = (vlm_dir / "sparse_vlm_hub_cards.py").read_text()
    assert "\nfrom sparse_vlm.encoder.video.clips import VideoSparseFormer\n" in cards  # an example for users
    assert not (vlm_dir / "sparse_vlm_encoder_video_clips.py").exists()
