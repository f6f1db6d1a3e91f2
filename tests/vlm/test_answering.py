"""Batched answers with shared prefixes equal the answers to single questions."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    Gemma3TextConfig,
    GPT2Config,
    Lfm2Config,
    MistralConfig,
    MptConfig,
    OPTConfig,
    PreTrainedConfig,
)

from sparse_vlm.data import easy_vqa
from sparse_vlm.errors import UserError
from sparse_vlm.image_files import open_image
from sparse_vlm.vlm.answering import Answerer
from sparse_vlm.vlm.build import build_vlm
from sparse_vlm.vlm.chat import answer, encode_prompt
from sparse_vlm.vlm.decoding import Decoding
from sparse_vlm.vlm.language.prefixes import CACHE
from sparse_vlm.vlm.loading import load_vlm
from tests.worded_vlm import TEMPLATE

Asked = tuple[list[Image.Image], list[tuple[int, str]]]


@pytest.fixture(scope="module")
def asked() -> Asked:
    """The first 60 test questions, about several images, in mixed order."""
    questions = easy_vqa.load_questions("test")[:60]
    ids = list(dict.fromkeys(question.image_id for question in questions))
    rows = [(ids.index(question.image_id), easy_vqa.prompt(question.text)) for question in questions]
    folder = easy_vqa.split_folder("test") / "images"
    return [open_image(easy_vqa.image_path(folder, image_id)) for image_id in ids], rows[::2] + rows[1::2]


def collect(answerer: Answerer, images: list[Image.Image] | None, rows: list[tuple[int, str]]) -> list[str]:
    answers: dict[int, str] = {}
    for batch in answerer.answer(images, rows):
        assert 0 < len(batch) <= answerer.batch_rows
        assert not answers.keys() & dict(batch).keys()
        answers |= dict(batch)
    return [answers[row] for row in range(len(rows))]


@pytest.fixture(scope="module")
def one_by_one(answerer: Answerer, asked: Asked) -> list[str]:
    images, rows = asked
    return [answer(answerer.model, answerer.processor, images[i], text, answerer.max_new_tokens) for i, text in rows]


@pytest.mark.slow
@pytest.mark.parametrize("batch_rows", [1, 16, 1000])
def test_batched_answers_equal_single_answers(
    answerer: Answerer, asked: Asked, one_by_one: list[str], batch_rows: int
) -> None:
    batched = Answerer(answerer.model, answerer.processor, answerer.max_new_tokens, batch_rows)
    assert collect(batched, *asked) == one_by_one
    # the comparison is meaningful: answers depend on image and question, and some end early
    assert len(set(one_by_one)) > 30
    lengths = {len(answerer.processor.tokenizer(text)["input_ids"]) for text in one_by_one}
    assert len(lengths) > 3


def test_each_question_sees_its_own_image(answerer: Answerer, asked: Asked, one_by_one: list[str]) -> None:
    images, rows = asked
    shifted = collect(answerer, images[1:] + images[:1], rows)
    assert sum(a != b for a, b in zip(shifted, one_by_one, strict=True)) > 30


def test_questions_without_images(answerer: Answerer, asked: Asked) -> None:
    texts = sorted({text for _, text in asked[1]})
    single = [answer(answerer.model, answerer.processor, None, text, answerer.max_new_tokens) for text in texts]
    assert collect(answerer, None, [(0, text) for text in texts]) == single
    assert len(set(single)) > 10


def test_prompts_without_a_shared_beginning(answerer: Answerer) -> None:
    """With a template without a head and no image, nothing is shared."""
    processor = copy.copy(answerer.processor)
    processor.chat_template = "{% for message in messages %}{{ message['content'][-1]['text'] }}<end>{% endfor %}"
    bare = Answerer(answerer.model, processor, max_new_tokens=4)
    texts = ["what color is the shape?", "is there a circle?"]
    single = [answer(answerer.model, processor, None, text, 4) for text in texts]
    assert collect(bare, None, [(0, text) for text in texts]) == single


def test_one_question_shares_all_but_its_last_token(answerer: Answerer, asked: Asked, one_by_one: list[str]) -> None:
    images, rows = asked
    assert collect(answerer, [images[rows[0][0]]], [(0, rows[0][1])]) == one_by_one[:1]


def test_a_template_with_the_image_after_the_question_is_refused(answerer: Answerer, asked: Asked) -> None:
    processor = copy.copy(answerer.processor)
    processor.chat_template = "{% for message in messages %}{{ message['content'][-1]['text'] }}<image>{% endfor %}"
    with pytest.raises(UserError, match="image before the text of the question"):
        collect(Answerer(answerer.model, processor, 4), *asked)


@pytest.mark.parametrize(
    ("visual_tokens", "sentence"),
    [
        (0, "at least 1, got 0"),
        (-1, "at least 1, got -1"),
        (16.5, "whole number of visual tokens"),
        ("abc", "whole number of visual tokens"),
        (2049, "exceeds the 2048 positions of the language model"),
    ],
)
def test_a_number_of_visual_tokens_that_no_question_can_have(
    answerer: Answerer, visual_tokens: Any, sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        Answerer(answerer.model, answerer.processor, 4, visual_tokens=visual_tokens)
    full = Answerer(answerer.model, answerer.processor, 4, visual_tokens=2040)
    with pytest.raises(UserError, match="Shorten the question or ask for fewer visual tokens"):
        full.check_length(True, "is it red?")
    full.check_length(False, "is it red?")


@pytest.mark.parametrize("decoding", [Decoding(), Decoding(beams=3)])
def test_batches_with_more_visual_tokens_than_the_models_own(
    answerer: Answerer, asked: Asked, decoding: Decoding
) -> None:
    model, processor, images, rows = answerer.model, answerer.processor, asked[0], asked[1][:20]
    batched = Answerer(model, processor, 6, 16, decoding=decoding, visual_tokens=20)
    single = [answer(model, processor, images[i], text, 6, decoding=decoding, visual_tokens=20) for i, text in rows]
    assert collect(batched, images, rows) == single
    assert len(set(single)) > 5
    if decoding.beams == 1:
        torch.manual_seed(0)
        sampled = Answerer(model, processor, 6, 16, decoding=Decoding(5.0), visual_tokens=20)
        assert len(set(collect(sampled, images, [rows[0]] * 8))) > 1


def test_a_batch_has_at_least_one_row(answerer: Answerer) -> None:
    with pytest.raises(UserError, match="at least 1, got 0"):
        Answerer(answerer.model, answerer.processor, 4, batch_rows=0)


SIZES: dict[str, Any] = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES["tie_word_embeddings"] = False
OTHERS: dict[str, PreTrainedConfig] = {
    "mistral": MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=8),
    "gemma3": Gemma3TextConfig(
        **SIZES,
        num_key_value_heads=2,
        head_dim=12,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "lfm2": Lfm2Config(**SIZES, num_key_value_heads=2, layer_types=["conv", "full_attention"]),
    "gpt2": GPT2Config(n_embd=48, n_layer=2, n_head=4, n_positions=64),
    "opt": OPTConfig(hidden_size=48, ffn_dim=96, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=48),
    "bloom": BloomConfig(hidden_size=48, n_layer=2, n_head=4),
    "falcon": FalconConfig(hidden_size=48, num_hidden_layers=2, num_attention_heads=4, alibi=True),
    "mpt": MptConfig(d_model=48, n_heads=4, n_layers=2, max_seq_len=64),
}


@pytest.mark.slow
@pytest.mark.parametrize("family", OTHERS)
def test_language_models_sensitive_to_padding(
    family: str, encoder_dir: Path, worded_vlm_dir: Path, asked: Asked, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Sliding windows shorter than the prompts, recurrent states, learned positions, biases that grow with distance."""
    tokenizer = load_vlm(worded_vlm_dir)[1].tokenizer
    config: Any = OTHERS[family]
    config.vocab_size, config.pad_token_id = len(tokenizer), tokenizer.pad_token_id
    config.bos_token_id = config.eos_token_id = tokenizer.eos_token_id
    torch.manual_seed(0)
    llm = AutoModelForCausalLM.from_config(config)
    for parameter in llm.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    llm.get_output_embeddings().weight.data[tokenizer.eos_token_id] = 0  # so that few answers end immediately
    llm.save_pretrained(tmp_path / "llm")
    tokenizer.save_pretrained(tmp_path / "llm")
    build_vlm(encoder_dir, tmp_path / "llm", tmp_path / "vlm", chat_template=TEMPLATE)
    model, processor = load_vlm(tmp_path / "vlm")
    images, rows = asked[0], asked[1][:12]
    single = [answer(model, processor, images[i], text, 5) for i, text in rows]
    batched = Answerer(model, processor, 5)
    assert collect(batched, images, rows) == single
    assert collect(batched, images, rows) == single
    assert len(set(single)) > 2
    counted = Answerer(model, processor, 5, visual_tokens=9)
    assert collect(counted, images, rows) == [
        answer(model, processor, images[i], text, 5, visual_tokens=9) for i, text in rows
    ]
    assert caplog.text.count("one question at a time") == 2 * (family in ("lfm2", "mpt"))  # once for each Answerer


def test_answer_refuses_a_prompt_that_is_too_long(answerer: Answerer, asked: Asked) -> None:
    images, rows = asked
    with pytest.raises(UserError, match=r"The question 'is is .* make \d+ tokens, more than the 2048"):
        collect(answerer, images, [*rows, (0, "is " * 3000)])


@pytest.mark.parametrize("settings", [Decoding(beams=3), Decoding(beams=1)])
def test_beam_search_and_a_system_prompt(answerer: Answerer, asked: Asked, settings: Decoding) -> None:
    """Answers equal those of transformers for complete prompts, one question at a time."""
    model, processor, limit = answerer.model, answerer.processor, answerer.max_new_tokens
    batched = Answerer(model, processor, limit, 16, decoding=settings, system="be brief")
    images, rows = asked
    single = []
    for place, text in rows[:20]:
        inputs = encode_prompt(processor, images[place], text, "be brief")
        ids = model.generate(**inputs, max_new_tokens=limit, **settings.settings)
        single.append(processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip())
    assert collect(batched, images, rows[:20]) == single
    assert single != collect(answerer, images, rows[:20])


def test_sampling_is_reproducible_with_a_seed(answerer: Answerer, asked: Asked) -> None:
    sampled = Answerer(answerer.model, answerer.processor, 8, decoding=Decoding(temperature=1.5, top_p=0.9))
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(collect(sampled, *asked))
    assert found[0] == found[1] != found[2]


def test_check_length_refuses_a_prompt_that_is_too_long(answerer: Answerer, asked: Asked) -> None:
    """Before anything is computed; a long prompt that fits is accepted."""
    longest = answerer.model.config.text_config.max_position_embeddings
    fits = "red " * ((longest - 40) // 4)  # more bytes than positions, but fewer tokens
    answerer.check_length(True, fits)
    for with_image in (True, False):
        with pytest.raises(UserError, match=f"more than the {longest} that the model takes"):
            answerer.check_length(with_image, "red " * longest)
    with pytest.raises(UserError, match="more than the"):
        collect(answerer, asked[0], [(0, "red " * longest)])


def rows_of_passes(answerer: Answerer, asked: Asked) -> tuple[list[int], list[str]]:
    """Return the number of rows of each forward pass of the language model after those of the prefixes, and answers."""
    rows: list[int] = []

    def count(module: Any, positional: Any, inputs: dict[str, Any], output: Any) -> None:
        cache = inputs[CACHE]  # None: the pass of the prefixes makes it
        if cache is not None:
            rows.append(len(output[0]))

    hook = answerer.model.model.language_model.register_forward_hook(count, with_kwargs=True)
    try:
        return rows, collect(answerer, *asked)
    finally:
        hook.remove()


@pytest.mark.parametrize("temperature", [0.0, 0.01])
def test_complete_answers_leave_the_batch(answerer: Answerer, asked: Asked, temperature: float) -> None:
    """After 2, 4, 8, … tokens: an answer takes part in at most twice as many passes as it has tokens."""
    limit = 24
    batched = Answerer(answerer.model, answerer.processor, limit, 1000, decoding=Decoding(temperature))
    rows, answers = rows_of_passes(batched, asked)
    lengths = [len(answerer.processor.tokenizer(text)["input_ids"]) + 1 for text in answers]  # and the end token
    assert len(set(rows)) > 2  # the batch became smaller more than once
    assert sum(rows) <= sum(min(2 * length, limit) for length in lengths)
    assert len(rows) <= limit


@pytest.mark.parametrize("name", ["min_new_tokens", "begin_suppress_tokens"])
def test_settings_that_count_from_the_prompt(answerer: Answerer, asked: Asked, name: str) -> None:
    """Of the model's own generation_config."""
    images, rows = asked[0], asked[1][:16]
    setting: dict[str, Any] = {name: 5 if name == "min_new_tokens" else [answerer.processor.tokenizer.eos_token_id]}
    model = copy.copy(answerer.model)
    model.generation_config = copy.deepcopy(answerer.model.generation_config)
    model.generation_config.update(**setting)
    single = [answer(model, answerer.processor, images[i], text, 8) for i, text in rows]
    assert collect(Answerer(model, answerer.processor, 8, 16), images, rows) == single
    assert collect(Answerer(answerer.model, answerer.processor, 8, 16), images, rows) != single
