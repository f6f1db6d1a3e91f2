"""Exported VLMs in ONNX Runtime answer what the model answers."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

from sparse_vlm.cli import main
from sparse_vlm.errors import UserError
from sparse_vlm.vlm.build import build_vlm
from sparse_vlm.vlm.chat import answer, encode_prompt
from sparse_vlm.vlm.export import folder as export_folder
from sparse_vlm.vlm.export.folder import export_vlm
from sparse_vlm.vlm.export.modules import cache_shapes
from sparse_vlm.vlm.export.runtime import OnnxVLM
from sparse_vlm.vlm.export.settings import DECODER, EMBEDDING, SETTINGS, VISION
from sparse_vlm.vlm.export.verify import TOLERANCE, differences
from sparse_vlm.vlm.loading import load_vlm
from tests.vlm.conftest import Loaded
from tests.vlm.language.test_families import random_llm
from tests.worded_vlm import TEMPLATE

pytestmark = pytest.mark.slow
Reuse = Callable[..., None]
QUESTIONS = ["What color is the shape?", "Is there a circle?", "What is not shown in the image?"]


def test_answers_are_those_of_the_model(exported: OnnxVLM, worded: Loaded, images: list[Image.Image]) -> None:
    requests: list[tuple[Any, dict[str, Any]]] = [
        *((image, {}) for image in images),
        (None, {}),
        (images, {}),
        (images[0], {"visual_tokens": 3}),
        (images[:2], {"visual_tokens": 9, "regions": [(0.25, 0.25, 0.75, 1.0)]}),
    ]
    answers = [exported.answer(image, text, 8, **options) for image, options in requests for text in QUESTIONS]
    expected = [answer(*worded, image, text, 8, **options) for image, options in requests for text in QUESTIONS]
    assert answers == expected
    assert len(set(answers)) > 5


def test_the_folder_describes_itself(exported_dir: Path, worded: Loaded) -> None:
    settings = json.loads((exported_dir / SETTINGS).read_text())
    assert settings["visual_tokens"] == len(settings["initial_rois"]) == 6
    assert settings["prompts"] == [["<user>", "<end><assistant>"], ["<user><image>\n", "<end><assistant>"]]
    assert settings["image_token"]["id"] == worded[0].config.image_token_index
    assert settings["eos_token_ids"] == [worded[1].tokenizer.eos_token_id]
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json", "processor_config.json"):
        assert (exported_dir / name).is_file()
    names = {}
    for file in (VISION, EMBEDDING, DECODER):
        session = onnxruntime.InferenceSession(exported_dir / file, providers=["CPUExecutionProvider"])
        names[file] = [value.name for value in session.get_inputs()], [value.name for value in session.get_outputs()]
    assert names[VISION] == (["pixel_values", "initial_rois"], ["image_features"])
    assert names[EMBEDDING] == (["input_ids"], ["inputs_embeds"])
    cache = [f"{index}.{part}" for index in (0, 1) for part in ("key", "value")]
    assert names[DECODER] == (
        ["inputs_embeds", "attention_mask", "position_ids", *(f"past_key_values.{name}" for name in cache)],
        ["logits", *(f"present.{name}" for name in cache)],
    )


def test_rows_of_a_batch_may_be_padded(exported_dir: Path, worded: Loaded) -> None:
    model, processor = worded
    texts = [
        processor.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False)
        for text in QUESTIONS
    ]
    inputs = processor(text=texts, padding=True, return_tensors="pt")
    assert (inputs["attention_mask"] == 0).any()
    with torch.no_grad():
        embeddings = model.get_input_embeddings()(inputs["input_ids"]).numpy()
        alone = [model(**encode_prompt(processor, None, text)).logits[0, -1].numpy() for text in QUESTIONS]
    decoder = onnxruntime.InferenceSession(exported_dir / DECODER, providers=["CPUExecutionProvider"])
    mask = inputs["attention_mask"].numpy()
    empty = {value.name: np.zeros((3, 2, 0, 12), np.float32) for value in decoder.get_inputs()[3:]}
    positions = np.maximum(mask.cumsum(-1) - 1, 0)
    feed = {"inputs_embeds": embeddings, "attention_mask": mask, "position_ids": positions, **empty}
    logits = decoder.run(["logits"], feed)[0]
    np.testing.assert_allclose(logits[:, 0], np.stack(alone), atol=1e-3, rtol=1e-3)


def test_another_model_differs(exported_dir: Path, worded_vlm_dir: Path) -> None:
    model: Any
    model, processor = load_vlm(worded_vlm_dir)
    found = differences(model, processor, exported_dir)
    assert max(found.values()) < TOLERANCE / 10
    changed = {"visual tokens": model.model.multi_modal_projector.linear_1.weight, "logits": model.lm_head.weight}
    for name, weight in changed.items():
        weight.data[:8] *= 1.5
        assert differences(model, processor, exported_dir)[name] > 10 * TOLERANCE
        weight.data[:8] /= 1.5


def test_a_wrong_export_is_not_written(
    worded_vlm_dir: Path, tmp_path: Path, reuse: Reuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    reuse(VISION, EMBEDDING, DECODER)
    monkeypatch.setattr(export_folder, "TOLERANCE", 0.0)
    with pytest.raises(RuntimeError, match=r"ONNX Runtime differs from torch by .* was not written"):
        export_vlm(worded_vlm_dir, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_fixed_number_of_visual_tokens(
    worded_vlm_dir: Path, worded: Loaded, images: list[Image.Image], tmp_path: Path, reuse: Reuse
) -> None:
    reuse(EMBEDDING, DECODER)
    assert main(["export", str(worded_vlm_dir), str(tmp_path / "out"), "--visual_tokens", "4"]) == 0
    exported = OnnxVLM(tmp_path / "out", threads=1)
    assert exported.settings["initial_rois"] is None
    for image in images:
        found = exported.answer(image, QUESTIONS[0], 8)
        assert found == answer(*worded, image, QUESTIONS[0], 8, visual_tokens=4)
    changes: list[dict[str, Any]] = [{"visual_tokens": 5}, {"regions": [(0.0, 0.0, 0.5, 0.5)]}]
    for options in changes:
        with pytest.raises(UserError, match="This export has 4 visual tokens for every image and takes no regions"):
            exported.answer(images[0], QUESTIONS[0], 8, **options)


def test_images_in_their_own_aspect_ratio(
    encoder_dir: Path, worded_vlm_dir: Path, images: list[Image.Image], tmp_path: Path, reuse: Reuse
) -> None:
    """The files are those of square images: the vision encoder takes any height and width."""
    reuse(VISION, EMBEDDING, DECODER)
    model_dir = tmp_path / "vlm"
    shutil.copytree(worded_vlm_dir, model_dir)
    for name in ("config.json", "processor_config.json"):
        text = (model_dir / name).read_text()
        (model_dir / name).write_text(text.replace('"aspect": "crop"', '"aspect": "native"'))
    export_vlm(model_dir, tmp_path / "out")
    exported, model = OnnxVLM(tmp_path / "out", threads=1), load_vlm(model_dir)
    assert exported.answer(images, QUESTIONS[0], 8) == answer(*model, images, QUESTIONS[0], 8)
    assert exported.settings["aspect"] == model[1].image_processor.aspect == "native"


def test_a_dense_vision_tower(
    clip_dir: Path, worded_vlm_dir: Path, images: list[Image.Image], tmp_path: Path, reuse: Reuse
) -> None:
    reuse(EMBEDDING, DECODER)
    build_vlm(clip_dir, worded_vlm_dir.parent / "llm", tmp_path / "vlm", chat_template=TEMPLATE)
    export_vlm(tmp_path / "vlm", tmp_path / "out")
    exported, model = OnnxVLM(tmp_path / "out", threads=1), load_vlm(tmp_path / "vlm")
    assert exported.answer(images, QUESTIONS[0], 8) == answer(*model, images, QUESTIONS[0], 8)
    with pytest.raises(UserError, match="is a dense ViT"):
        export_vlm(tmp_path / "vlm", tmp_path / "other", visual_tokens=4)


def test_int8(worded_vlm_dir: Path, exported_dir: Path, tmp_path: Path) -> None:
    assert main(["export", str(worded_vlm_dir), str(tmp_path / "out"), "--int8"]) == 0
    counts = {
        file: Counter(node.op_type for node in onnx.load(tmp_path / "out" / file).graph.node)
        for file in (VISION, DECODER)
    }
    assert counts[DECODER]["MatMulInteger"] == 2 * 7 + 1  # seven Linears per layer, and the output layer
    assert counts[VISION]["MatMulInteger"] > 10
    exported, float32 = OnnxVLM(tmp_path / "out", threads=1), OnnxVLM(exported_dir, threads=1)
    inputs = encode_prompt(exported.processor, None, QUESTIONS[0])
    (found,), (expected,) = exported.generate(inputs, 1), float32.generate(inputs, 1)
    assert 1e-4 < np.linalg.norm(found - expected) / np.linalg.norm(expected) < 0.2


def test_weights_beyond_one_file(
    worded_vlm_dir: Path, tmp_path: Path, reuse: Reuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit is 2 GB; here it is lower."""
    reuse(VISION, EMBEDDING)
    monkeypatch.setattr(export_folder, "LARGEST", 1000)
    with pytest.raises(UserError, match=r"The decoder exceeds 2 GB, which a page cannot load: add --int8\."):
        export_vlm(worded_vlm_dir, tmp_path / "page", packages=tmp_path)
    export_vlm(worded_vlm_dir, tmp_path / "out")
    assert (tmp_path / "out" / f"{DECODER}.data").stat().st_size > 150_000  # most of its 4-byte weights
    model, _ = load_vlm(worded_vlm_dir, attn_implementation="eager")
    (tmp_path / "int8").mkdir()
    export_folder._write_decoder(model, tmp_path / "int8" / DECODER, cache_shapes(model), int8=True)
    assert [file.name for file in (tmp_path / "int8").iterdir()] == [DECODER]
    nodes = onnx.load(tmp_path / "int8" / DECODER).graph.node
    assert sum(node.op_type == "MatMulInteger" for node in nodes) == 2 * 7 + 1


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "mistral", "gemma3", "gpt2", "phi3"])
def test_decoders_of_other_language_models(
    family: str, encoder_dir: Path, short_tokenizer: Any, tmp_path: Path
) -> None:
    """With sliding windows shorter than the prompt, scaled embeddings, and learned positions."""
    build_vlm(encoder_dir, random_llm(tmp_path / "llm", family, short_tokenizer), tmp_path / "vlm")
    model, processor = load_vlm(tmp_path / "vlm", attn_implementation="eager")
    layers = cache_shapes(model)
    export_folder._write_decoder(model, tmp_path / DECODER, layers, int8=False)
    decoder = onnxruntime.InferenceSession(tmp_path / DECODER, providers=["CPUExecutionProvider"])
    ids = encode_prompt(processor, None, "Which colour has the thing on the left of the big red cube?")["input_ids"]
    with torch.no_grad():
        embeddings = model.get_input_embeddings()(ids).numpy()
        expected = model(input_ids=ids).logits[0].numpy()
    names = [value.name for value in decoder.get_inputs()[3:]]
    cache = {name: np.zeros((1, layers[0].heads, 0, layers[0].key_width), np.float32) for name in names}
    for start, end in ((0, 15), (15, 16), (16, ids.shape[1])):
        logits, *present = decoder.run(
            None,
            {
                "inputs_embeds": embeddings[:, start:end],
                "attention_mask": np.ones((1, end), np.int64),
                "position_ids": np.arange(start, end)[None],
                **cache,
            },
        )
        cache = dict(zip(names, present, strict=True))
        np.testing.assert_allclose(logits[0, 0], expected[end - 1], atol=1e-4, rtol=1e-3)


def test_a_language_model_that_cannot_be_exported(
    encoder_dir: Path, short_tokenizer: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build_vlm(encoder_dir, random_llm(tmp_path / "llm", "bloom", short_tokenizer), tmp_path / "vlm")
    assert main(["export", str(tmp_path / "vlm"), str(tmp_path / "out")]) == 2
    assert "A language model of type 'bloom' cannot be exported: its layers must be" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
