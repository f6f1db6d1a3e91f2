import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from sparse_vlm.cli import main
from sparse_vlm.dtypes import convert
from sparse_vlm.errors import UserError
from sparse_vlm.vlm.build import build_vlm, check_opens, load_vlm
from sparse_vlm.vlm.chat import encode_prompt
from sparse_vlm.vlm.language.llm import load_llm
from sparse_vlm.vlm.modeling import SparseVLMForConditionalGeneration
from tests.forked import run_program
from tests.vlm.conftest import Loaded


def logits_of(model: Any, inputs: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs).logits


def is_tied(model: Any) -> bool:
    return model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()


def test_the_directory_describes_itself(vlm_dir: Path) -> None:
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


def test_text_logits_are_those_of_the_llm(vlm: Loaded, llm_dir: Path) -> None:
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


def test_the_seed_makes_the_projector(tmp_path: Path, encoder_dir: Path, llm_dir: Path, vlm_dir: Path) -> None:
    key = "model.multi_modal_projector.linear_1.weight"
    for seed in (0, 1):
        build_vlm(encoder_dir, llm_dir, tmp_path / str(seed), seed=seed)
    weights = [
        load_file(directory / "model.safetensors")[key] for directory in (tmp_path / "0", tmp_path / "1", vlm_dir)
    ]
    assert torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[0], weights[1])


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
    """Through transformers' Auto classes, whose Llava may have been imported before them."""
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


def test_a_process_that_has_transformers_opens_it_after_import_sparse_vlm(vlm_dir: Path, tmp_path: Path) -> None:
    program = """
import sys
assert "transformers" in sys.modules and "sparse_vlm" not in sys.modules  # forked from such a process
from transformers import AutoModelForImageTextToText, AutoProcessor
import sparse_vlm
"""
    assert run_program(program + OPEN, str(vlm_dir), folder=tmp_path).splitlines()[-1] == OPENED


@pytest.mark.parametrize(
    ("own", "asked", "expected"),
    [
        (torch.bfloat16, None, torch.bfloat16),
        (torch.float16, None, torch.float16),
        (torch.bfloat16, "float32", torch.float32),
        (torch.float32, "bfloat16", torch.bfloat16),
    ],
)
def test_the_directory_has_the_llms_dtype_or_the_one_asked_for(
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
        after = language[f"model.language_{name}"][: len(weight)]  # behind the old rows the embeddings have new ones
        assert torch.equal(after.float(), weight.to(expected).float())
    described = json.loads((tmp_path / "out" / "config.json").read_text())
    assert described["dtype"] == described["text_config"]["dtype"] == str(expected).removeprefix("torch.")
    assert load_vlm(tmp_path / "out")[0].dtype == torch.float32, "what load_vlm was asked for"


def test_a_dtype_that_does_not_hold_the_weights_is_a_sentence(tmp_path: Path, encoder_dir: Path, llm_dir: Path) -> None:
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
    """The packaged LLM end to end; what transformers reads from GGUF is kept aside for the comparison."""
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


def test_untied_llm_of_another_family_with_spare_rows(
    tmp_path: Path, encoder_dir: Path, smollm2_tokenizer: PreTrainedTokenizerBase
) -> None:
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    vocabulary = len(smollm2_tokenizer) + 100
    config = Qwen2Config(vocab_size=vocabulary, num_key_value_heads=2, tie_word_embeddings=False, **sizes)
    llm: Any = Qwen2ForCausalLM(config).eval()
    llm.save_pretrained(tmp_path / "llm")
    smollm2_tokenizer.save_pretrained(tmp_path / "llm")
    build_vlm(encoder_dir, tmp_path / "llm", tmp_path / "vlm")
    loaded: Loaded = load_vlm(tmp_path / "vlm")
    assert not is_tied(loaded[0])
    assert loaded[0].get_input_embeddings().num_embeddings == vocabulary
    inputs = encode_prompt(loaded[1], None, "What?")
    torch.testing.assert_close(logits_of(loaded[0], inputs), logits_of(llm, inputs))


@pytest.mark.parametrize(
    ("llm", "gguf_file", "message"),
    [
        ("/nowhere/at/all", None, "There is no LLM directory /nowhere/at/all"),
        ("/nowhere/at/all", "model.gguf", "There is no LLM directory /nowhere/at/all"),
        ("/nowhere/model.gguf", None, "There is no LLM directory /nowhere"),
        ("nowhere", None, "There is no LLM directory nowhere; on the Hugging Face hub a name is OWNER/NAME"),
        ("EMPTY", "model.gguf", r"There is no file model.gguf in .*; .gguf files there: none"),
        ("EMPTY", None, "holds no config.json"),
    ],
)
def test_missing_llm(tmp_path: Path, llm: str, gguf_file: str | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_llm(tmp_path if llm == "EMPTY" else llm, gguf_file)


def test_damaged_llm(tmp_path: Path, llm_dir: Path) -> None:
    (tmp_path / "config.json").write_bytes((llm_dir / "config.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"The LLM .* cannot be opened"):
        load_llm(tmp_path)
    (tmp_path / "broken.gguf").write_bytes(b"no GGUF")
    with pytest.raises(UserError, match=r"The LLM .* cannot be opened"):
        load_llm(tmp_path, "broken.gguf")


def test_no_weight_of_an_llm_is_made_up(tmp_path: Path, llm_dir: Path) -> None:
    llm = shutil.copytree(llm_dir, tmp_path / "llm")
    weights = load_file(llm / "model.safetensors")
    save_file({name: value for name, value in weights.items() if "layers.1" not in name}, llm / "model.safetensors")
    with pytest.raises(UserError, match=r"missing_keys: model\.layers\.1\.input_layernorm.* and 4 more"):
        load_llm(llm)
    save_file(weights | {"model.norm.weight": torch.zeros(3)}, llm / "model.safetensors")
    with pytest.raises(UserError, match=r"mismatched_keys: .*model\.norm\.weight"):
        load_llm(llm)


def test_a_gguf_file_cut_short(tmp_path: Path, smollm2_gguf: Path) -> None:
    with smollm2_gguf.open("rb") as file:
        (tmp_path / "cut.gguf").write_bytes(file.read(1000))
    with pytest.raises(UserError, match=r"The LLM .*/cut\.gguf cannot be opened: unpack_from"):
        load_llm(tmp_path / "cut.gguf")


def test_build_refuses(tmp_path: Path, encoder_dir: Path, llm_dir: Path) -> None:
    with pytest.raises(UserError, match="There is no encoder directory"):
        build_vlm(tmp_path / "none", llm_dir, tmp_path / "out")
    with pytest.raises(UserError, match=r"vision_feature_layer -4 does not exist: the encoder has 2 blocks"):
        build_vlm(encoder_dir, llm_dir, tmp_path / "out", vision_feature_layer=-4)
    with pytest.raises(UserError, match="Unknown projector 'mlp'"):
        build_vlm(encoder_dir, llm_dir, tmp_path / "out", projector="mlp")
    assert not (tmp_path / "out").exists()


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
    """Damages a model directory: "FILE" is removed, "FILE=TEXT" is written, "PART.FIELD=JSON" is set in config.json."""
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
def test_a_damaged_model_directory_is_one_sentence(tmp_path: Path, vlm_dir: Path, change: str, message: str) -> None:
    damaged(change, shutil.copytree(vlm_dir, tmp_path / "vlm"))
    with pytest.raises(UserError, match=message):
        load_vlm(tmp_path / "vlm")


def test_load_names_missing_and_unknown_weights(tmp_path: Path, vlm: Loaded) -> None:
    model, processor = vlm
    weights = {k: v.contiguous() for k, v in model.state_dict().items() if k != "lm_head.weight"}
    weights["model.something"] = weights.pop("model.multi_modal_projector.linear_1.bias")
    model.save_pretrained(tmp_path, state_dict=weights)
    processor.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"missing_keys: .*linear_1.bias; unexpected_keys: .*something"):
        load_vlm(tmp_path)


def test_what_does_not_open_is_not_published(
    tmp_path: Path, encoder_dir: Path, llm_dir: Path, vlm_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A weight is lost while the model is saved."""
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


def test_an_llm_without_padding_token_gets_one(
    tmp_path: Path, encoder_dir: Path, llm_dir: Path, smollm2_tokenizer: PreTrainedTokenizerBase
) -> None:
    llm, tokenizer = load_llm(llm_dir)
    tokenizer.pad_token = None
    llm.save_pretrained(tmp_path / "llm")
    tokenizer.save_pretrained(tmp_path / "llm")
    build_vlm(encoder_dir, tmp_path / "llm", tmp_path / "vlm")
    assert load_vlm(tmp_path / "vlm")[1].tokenizer.pad_token == smollm2_tokenizer.eos_token


def test_an_llms_generation_settings_can_be_saved_after_training(
    tmp_path: Path, encoder_dir: Path, llm_dir: Path
) -> None:
    """Vicuna-7B-v1.5's hold sampling values without do_sample, which transformers saves only where nothing changed."""
    llm = shutil.copytree(llm_dir, tmp_path / "llm")
    settings = {"eos_token_id": [5, 6], "pad_token_id": 0, "max_length": 4096, "temperature": 0.9, "top_p": 0.6}
    (llm / "generation_config.json").write_text(json.dumps(settings))
    build_vlm(encoder_dir, llm, tmp_path / "vlm")
    model: Any = load_vlm(tmp_path / "vlm")[0]
    generation = model.generation_config
    assert (generation.do_sample, generation.temperature, generation.top_p) == (None, None, None)  # greedy, as before
    assert (generation.eos_token_id, generation.pad_token_id, generation.max_length) == ([2, 5, 6], 2, 4096)
    generation.pad_token_id = 3
    model.save_pretrained(tmp_path / "trained")


def test_an_llm_that_samples_goes_on_sampling(tmp_path: Path, encoder_dir: Path, llm_dir: Path) -> None:
    llm = shutil.copytree(llm_dir, tmp_path / "llm")
    (llm / "generation_config.json").write_text(json.dumps({"do_sample": True, "temperature": 0.9, "top_p": 0.6}))
    build_vlm(encoder_dir, llm, tmp_path / "vlm")
    generation: Any = load_vlm(tmp_path / "vlm")[0].generation_config
    assert (generation.do_sample, generation.temperature, generation.top_p) == (True, 0.9, 0.6)
