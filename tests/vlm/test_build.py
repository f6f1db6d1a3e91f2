"""Building a model directory: its contents, and that the language model computes the same as before."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from sparse_vlm.cli import main
from sparse_vlm.dtypes import convert
from sparse_vlm.errors import UserError
from sparse_vlm.vlm.build import build_vlm
from sparse_vlm.vlm.chat import encode_prompt
from sparse_vlm.vlm.language.causal_lm import load_llm
from sparse_vlm.vlm.loading import check_opens, load_vlm
from sparse_vlm.vlm.modeling import SparseVLMForConditionalGeneration
from tests.vlm.conftest import Loaded, is_tied, logits_of


def test_the_directory_is_self_describing(vlm_dir: Path) -> None:
    names = {path.name for path in vlm_dir.iterdir()}
    assert {
        "config.json",
        "model.safetensors",
        "processor_config.json",
        "tokenizer.json",
        "chat_template.jinja",
    } <= names
    config = json.loads((vlm_dir / "config.json").read_text())
    assert config["architectures"] == ["SparseVLMForConditionalGeneration"]
    assert config["model_type"] == "sparse_vlm"
    assert config["vision_config"]["model_type"] == "sparseformer"
    assert config["vision_config"]["encoder"]["focus"]["tokens"] == config["image_seq_length"] == 6
    assert str(vlm_dir.parent.parent) not in (vlm_dir / "config.json").read_text(), "no path of this machine"


def test_text_logits_equal_those_of_the_llm(vlm: Loaded, llm_dir: Path) -> None:
    llm = AutoModelForCausalLM.from_pretrained(llm_dir)
    inputs = encode_prompt(vlm[1], None, "What is two and two?")
    expected = logits_of(llm, inputs)
    torch.testing.assert_close(logits_of(vlm[0], inputs)[..., : expected.shape[-1]], expected)


def test_new_ids_are_never_the_answer(vlm: Loaded, images: list[Image.Image]) -> None:
    logits = logits_of(vlm[0], encode_prompt(vlm[1], images[0], "What?"))
    old, new = logits[..., : vlm[0].config.image_token_id], logits[..., vlm[0].config.image_token_id :]
    assert (new.amax(dim=-1) < old.amax(dim=-1)).all()


def test_visual_tokens_start_at_the_rms_of_the_embeddings(vlm: Loaded, images: list[Image.Image]) -> None:
    model, processor = vlm
    pixel_values = processor.image_processor(images, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        features = torch.stack(model.model.get_image_features(pixel_values).pooler_output)
    rms = features.square().mean().sqrt() / model.get_input_embeddings().weight.square().mean().sqrt()
    assert 0.8 < rms < 1.25


@pytest.mark.slow
def test_the_seed_determines_the_projector(tmp_path: Path, encoder_dir: Path, llm_dir: Path, vlm_dir: Path) -> None:
    key = "model.multi_modal_projector.linear_1.weight"
    for seed in (0, 1):
        build_vlm(encoder_dir, llm_dir, tmp_path / str(seed), seed=seed)
    weights = [
        load_file(directory / "model.safetensors")[key] for directory in (tmp_path / "0", tmp_path / "1", vlm_dir)
    ]
    assert torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[0], weights[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("own", "asked", "expected"),
    [
        (torch.bfloat16, None, torch.bfloat16),
        (torch.float16, None, torch.float16),
        (torch.bfloat16, "float32", torch.float32),
        (torch.float32, "bfloat16", torch.bfloat16),
    ],
)
def test_the_directory_has_the_llms_dtype_or_the_requested_one(
    tmp_path: Path, encoder_dir: Path, llm_dir: Path, own: torch.dtype, asked: str | None, expected: torch.dtype
) -> None:
    llm, tokenizer = load_llm(llm_dir)
    convert(llm, own)
    llm.save_pretrained(tmp_path / "llm")
    tokenizer.save_pretrained(tmp_path / "llm")
    build_vlm(encoder_dir, tmp_path / "llm", tmp_path / "out", dtype=asked)
    written = load_file(tmp_path / "out" / "model.safetensors")
    language = {name: weight for name, weight in written.items() if ".language_model." in name}
    assert {weight.dtype for weight in language.values()} == {expected}
    assert {weight.dtype for weight in written.values()} == {expected, torch.float32}, "coordinates stay float32"
    for name, weight in load_file(tmp_path / "llm" / "model.safetensors").items():
        after = language[f"model.language_{name}"][: len(weight)]  # the embeddings have new rows after the old ones
        assert torch.equal(after.float(), weight.to(expected).float())
    described = json.loads((tmp_path / "out" / "config.json").read_text())
    assert described["dtype"] == described["text_config"]["dtype"] == str(expected).removeprefix("torch.")
    assert load_vlm(tmp_path / "out")[0].dtype == torch.float32, "what load_vlm was asked for"


@pytest.mark.slow
def test_weights_too_large_for_the_dtype_are_an_error(tmp_path: Path, encoder_dir: Path, llm_dir: Path) -> None:
    llm, tokenizer = load_llm(llm_dir)
    with torch.no_grad():
        llm.get_input_embeddings().weight[7, 0] = 7e4
    llm.save_pretrained(tmp_path / "llm")
    tokenizer.save_pretrained(tmp_path / "llm")
    with pytest.raises(UserError, match=r"holds .*7e\+04.*too large for float16"):
        build_vlm(encoder_dir, tmp_path / "llm", tmp_path / "out", dtype="float16")
    with pytest.raises(UserError, match=r"Unknown --dtype 'bf16'\. Did you mean 'bfloat16'"):
        build_vlm(encoder_dir, llm_dir, tmp_path / "out", dtype="bf16")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_smollm2_from_gguf(
    tmp_path: Path, encoder_dir: Path, smollm2_gguf: Path, monkeypatch: pytest.MonkeyPatch, images: list[Image.Image]
) -> None:
    """The packaged LLM end to end, compared with the model that transformers reads from GGUF."""
    kept = []
    read = AutoModelForCausalLM.from_pretrained

    def reading(*args: Any, **kwargs: Any) -> Any:
        loaded = read(*args, **kwargs)
        kept.append(loaded[0])
        return loaded

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", reading)
    assert main(["build", str(encoder_dir), str(smollm2_gguf), str(tmp_path / "vlm")]) == 0
    loaded: Loaded = load_vlm(tmp_path / "vlm")
    model, processor = loaded
    assert is_tied(model)
    inputs = encode_prompt(processor, None, "What is the capital of France?")
    expected = logits_of(kept[0], inputs)
    torch.testing.assert_close(logits_of(model, inputs)[..., : expected.shape[-1]], expected, atol=1e-4, rtol=1e-5)
    ids = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    assert "Paris" in processor.decode(ids[0, inputs["input_ids"].shape[1] :])
    assert model.generate(**encode_prompt(processor, images[0], "What?"), max_new_tokens=2).shape[0] == 1


@pytest.mark.slow
def test_untied_llm_of_another_family_with_spare_rows(
    tmp_path: Path, encoder_dir: Path, short_tokenizer: PreTrainedTokenizerBase
) -> None:
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    vocabulary = len(short_tokenizer) + 100
    config = Qwen2Config(vocab_size=vocabulary, num_key_value_heads=2, tie_word_embeddings=False, **sizes)
    llm: Any = Qwen2ForCausalLM(config).eval()
    llm.save_pretrained(tmp_path / "llm")
    short_tokenizer.save_pretrained(tmp_path / "llm")
    build_vlm(encoder_dir, tmp_path / "llm", tmp_path / "vlm")
    loaded: Loaded = load_vlm(tmp_path / "vlm")
    assert not is_tied(loaded[0])
    assert loaded[0].get_input_embeddings().num_embeddings == vocabulary
    inputs = encode_prompt(loaded[1], None, "What?")
    torch.testing.assert_close(logits_of(loaded[0], inputs), logits_of(llm, inputs))


def test_build_refuses(tmp_path: Path, encoder_dir: Path, llm_dir: Path) -> None:
    with pytest.raises(UserError, match="There is no encoder directory"):
        build_vlm(tmp_path / "none", llm_dir, tmp_path / "out")
    with pytest.raises(UserError, match=r"vision_feature_layer -4 does not exist: the encoder has 2 blocks"):
        build_vlm(encoder_dir, llm_dir, tmp_path / "out", vision_feature_layer=-4)
    with pytest.raises(UserError, match="Unknown projector 'mlp'"):
        build_vlm(encoder_dir, llm_dir, tmp_path / "out", projector="mlp")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_directory_that_does_not_open_is_not_published(
    tmp_path: Path, encoder_dir: Path, llm_dir: Path, vlm_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here a weight is lost while the model is saved."""
    save = SparseVLMForConditionalGeneration.save_pretrained

    def losing(self: Any, folder: Path, **options: Any) -> None:
        save(self, folder, **options)
        weights = load_file(folder / "model.safetensors")
        del weights["model.multi_modal_projector.linear_1.bias"]
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    check_opens(vlm_dir)
    monkeypatch.setattr(SparseVLMForConditionalGeneration, "save_pretrained", losing)
    with pytest.raises(UserError, match=r"missing_keys: model\.multi_modal_projector\.linear_1\.bias"):
        build_vlm(encoder_dir, llm_dir, tmp_path / "vlm")
    assert not any(tmp_path.iterdir())
