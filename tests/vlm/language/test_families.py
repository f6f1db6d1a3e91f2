"""VLMs with LLMs of all supported families: logits, loss, batches, several images, saving and loading."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen3Config,
)

from sparse_vlm.errors import UserError
from sparse_vlm.vlm.build import build_vlm
from sparse_vlm.vlm.chat import GREEDY, answer, encode_prompt
from sparse_vlm.vlm.loading import load_vlm
from train.language.data import PACKABLE

# with the peculiarities of each: tied or own output layer, a window shorter than the prompts, biases, soft caps
FAMILIES: dict[str, tuple[type[PreTrainedConfig], dict[str, Any]]] = {
    "llama": (LlamaConfig, {"tie_word_embeddings": False}),
    "smollm2": (
        LlamaConfig,
        {"tie_word_embeddings": True, "rope_parameters": {"rope_theta": 1e5, "rope_type": "default"}},
    ),
    "mistral": (MistralConfig, {"sliding_window": 12}),
    "qwen2": (Qwen2Config, {"tie_word_embeddings": True}),
    "qwen3": (Qwen3Config, {}),
    "phi": (PhiConfig, {}),
    "phi3": (Phi3Config, {}),
    "gemma": (GemmaConfig, {}),
    "gemma2": (Gemma2Config, {"final_logit_softcapping": 0.5, "sliding_window": 12}),
    "gemma3": (Gemma3TextConfig, {"sliding_window": 12, "layer_types": ["sliding_attention", "full_attention"]}),
    "gpt2": (GPT2Config, {"n_positions": 128}),
    "opt": (OPTConfig, {"ffn_dim": 96, "word_embed_proj_dim": 48, "dropout": 0.0}),
    "bloom": (BloomConfig, {}),
    "falcon": (FalconConfig, {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "gpt_neox": (GPTNeoXConfig, {}),
}
SIZES = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "initializer_range": 0.1}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
QUESTIONS = ["What is it?", "Which colour has the thing that lies on the left of the big red cube?", "Is it red?"]


def _names(kind: type[PreTrainedConfig]) -> set[str]:
    return {*kind.__dataclass_fields__, *kind.attribute_map}


def random_llm(folder: Path, family: str, tokenizer: PreTrainedTokenizerBase) -> Path:
    kind, special = FAMILIES[family]
    head_dim = {"head_dim": 12} if "head_dim" in kind.__dataclass_fields__ else {}
    torch.manual_seed(0)
    common = {name: value for name, value in (SIZES | HEADS).items() if name in _names(kind)}
    config = kind(vocab_size=len(tokenizer), **common, **head_dim, **special)
    llm = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in llm.parameters():  # including biases, so that nothing is exactly 0
            parameter += 0.05 * torch.randn_like(parameter)
    llm.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=FAMILIES)
def parts(
    request: pytest.FixtureRequest,
    encoder_dir: Path,
    short_tokenizer: PreTrainedTokenizerBase,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, Path]:
    """The directories of a random LLM of the family and of the VLM built with it."""
    folder = tmp_path_factory.mktemp(request.param)
    llm = random_llm(folder / "llm", request.param, short_tokenizer)
    build_vlm(encoder_dir, llm, folder / "vlm")
    return llm, folder / "vlm"


def new_tokens(model: Any, inputs: Any, **options: Any) -> list[list[int]]:
    ids = model.generate(**inputs, max_new_tokens=6, min_new_tokens=6, **(GREEDY | options))
    return ids[:, inputs["input_ids"].shape[1] :].tolist()


def batch(processor: Any, images: list[list[Image.Image]]) -> Any:
    """Encode a question about each list of images, padded on the left."""
    texts = []
    for question, group in zip(QUESTIONS, images, strict=True):
        content = [*[{"type": "image"}] * len(group), {"type": "text", "text": question}]
        message = [{"role": "user", "content": content}]
        texts.append(processor.apply_chat_template(message, add_generation_prompt=True, tokenize=False))
    flat = [image for group in images for image in group]
    return processor(text=texts, images=flat, padding=True, add_special_tokens=False, return_tensors="pt")


def in_one_row(prompts: list[Any]) -> dict[str, Any]:
    """Pack prompts as sparse_vlm/data/conversations/collate.py does: positions restart, no mask, no cache."""
    widths = [one["input_ids"].shape[1] for one in prompts]
    return {
        "input_ids": torch.cat([one["input_ids"] for one in prompts], dim=1),
        "position_ids": torch.cat([torch.arange(width) for width in widths])[None],
        "pixel_values": torch.cat([one["pixel_values"] for one in prompts if "pixel_values" in one]),
        "use_cache": False,
    }


@pytest.mark.slow
def test_every_family(parts: tuple[Path, Path], images: list[Image.Image], tmp_path: Path) -> None:
    llm_dir, vlm_dir = parts
    model: Any
    model, processor = load_vlm(vlm_dir)

    # text only: the LLM's own logits
    llm = AutoModelForCausalLM.from_pretrained(llm_dir)
    text = encode_prompt(processor, None, QUESTIONS[1])
    with torch.no_grad():
        expected = llm(**text).logits
        torch.testing.assert_close(model(**text).logits[..., : expected.shape[-1]], expected)

    # no image, one and three in one batch give the single answers
    groups = [images[:1], [], images]
    inputs = batch(processor, groups)
    assert (inputs["attention_mask"] == 0).any(), "the prompts must differ in length"
    alone = [encode_prompt(processor, group, question) for group, question in zip(groups, QUESTIONS, strict=True)]
    greedy = [new_tokens(model, one)[0] for one in alone]
    assert new_tokens(model, inputs) == greedy
    beams = [new_tokens(model, one, num_beams=3)[0] for one in alone]
    assert new_tokens(model, inputs, num_beams=3) == beams

    # the same three packed into one row, if training supports it, do not see each other
    if model.config.get_text_config().model_type in PACKABLE:
        with torch.no_grad():
            expected = torch.cat([model(**one).logits[0] for one in alone])
            torch.testing.assert_close(model(**in_one_row(alone)).logits[0], expected, atol=1e-4, rtol=1e-4)

    # the loss reaches the projector and the LLM
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    for part in (model.model.multi_modal_projector, model.model.language_model):
        assert all(parameter.grad.isfinite().all() for parameter in part.parameters())
        assert any(parameter.grad.any() for parameter in part.parameters())

    # save and load
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, _ = load_vlm(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, model(**inputs).logits)


def test_sampling(vlm: Any, images: list[Image.Image]) -> None:
    """The seed determines the answers. With only the most likely token, sampling is greedy decoding, in batches too."""
    model, processor = vlm
    inputs = batch(processor, [images[:1], [], images])
    draws = {"do_sample": True, "temperature": 5.0}
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(new_tokens(model, inputs, **draws))
    assert drawn[0] == drawn[1] != drawn[2]
    assert new_tokens(model, inputs, do_sample=True, top_k=1) == new_tokens(model, inputs)


def test_the_order_of_several_images_matters(vlm: Any, images: list[Image.Image]) -> None:
    model, processor = vlm
    with torch.no_grad():
        logits = [
            model(**encode_prompt(processor, pair, "Which is red?")).logits[0, -1]
            for pair in (images[:2], images[1::-1])
        ]
    assert (logits[0] - logits[1]).abs().max() > 1e-4
    assert isinstance(answer(model, processor, images[:2], "Which is red?", max_new_tokens=2), str)


@pytest.mark.slow
def test_an_llm_whose_logits_llava_cannot_compute_is_refused(
    encoder_dir: Path, short_tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FAMILIES, "granite", (GraniteConfig, {"logits_scaling": 8.0}))
    llm = random_llm(tmp_path / "llm", "granite", short_tokenizer)
    with pytest.raises(UserError, match=r"A GraniteForCausalLM computes its logits .* differ from them by"):
        build_vlm(encoder_dir, llm, tmp_path / "vlm")
    assert not (tmp_path / "vlm").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "special", "sentence"),
    [
        ("gpt2", {"n_positions": 24}, r"The LLM takes 24 tokens, but an image .* need \d+"),
        (
            "opt",
            {"word_embed_proj_dim": 32, "do_layer_norm_before": False},
            "embeddings of width 32 and layers of width 48",
        ),
        ("mamba", {}, "A MambaForCausalLM does not run inside transformers' Llava"),
    ],
)
def test_an_unsuitable_llm_is_a_one_line_error(
    family: str,
    special: dict[str, Any],
    sentence: str,
    encoder_dir: Path,
    short_tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(FAMILIES, "mamba", (MambaConfig, {}))
    kind, before = FAMILIES[family]
    monkeypatch.setitem(FAMILIES, family, (kind, before | special))
    llm = random_llm(tmp_path / "llm", family, short_tokenizer)
    with pytest.raises(UserError, match=sentence):
        build_vlm(encoder_dir, llm, tmp_path / "vlm")
    assert not (tmp_path / "vlm").exists()
