"""Batched answers with shared prefixes are the answers that the model gives one by one."""

import copy

import pytest
import torch
from PIL import Image

from sparse_vlm.data import easy_vqa
from sparse_vlm.data.images import open_image
from sparse_vlm.errors import UserError
from sparse_vlm.vlm.answering import Answerer
from sparse_vlm.vlm.chat import answer, encode_prompt
from sparse_vlm.vlm.decoding import Decoding

Asked = tuple[list[Image.Image], list[tuple[int, str]]]


@pytest.fixture(scope="module")
def asked() -> Asked:
    """The first 60 test questions, about several pictures, the questions in mixed order."""
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


@pytest.mark.parametrize("batch_rows", [1, 16, 1000])
def test_batched_answers_equal_single_answers(
    answerer: Answerer, asked: Asked, one_by_one: list[str], batch_rows: int
) -> None:
    batched = Answerer(answerer.model, answerer.processor, answerer.max_new_tokens, batch_rows)
    assert collect(batched, *asked) == one_by_one
    # the model tells pictures and questions apart, and stops early on some: otherwise the equality says little
    assert len(set(one_by_one)) > 30
    lengths = {len(answerer.processor.tokenizer(text)["input_ids"]) for text in one_by_one}
    assert len(lengths) > 3


def test_each_question_sees_its_own_picture(answerer: Answerer, asked: Asked, one_by_one: list[str]) -> None:
    images, rows = asked
    shifted = collect(answerer, images[1:] + images[:1], rows)
    assert sum(a != b for a, b in zip(shifted, one_by_one, strict=True)) > 30


def test_questions_without_pictures(answerer: Answerer, asked: Asked) -> None:
    texts = sorted({text for _, text in asked[1]})
    single = [answer(answerer.model, answerer.processor, None, text, answerer.max_new_tokens) for text in texts]
    assert collect(answerer, None, [(0, text) for text in texts]) == single
    assert len(set(single)) > 10


def test_prompts_without_a_common_beginning(answerer: Answerer) -> None:
    """A template without a head and no picture: nothing is shared."""
    processor = copy.copy(answerer.processor)
    processor.chat_template = "{% for message in messages %}{{ message['content'][-1]['text'] }}<end>{% endfor %}"
    bare = Answerer(answerer.model, processor, max_new_tokens=4)
    texts = ["what color is the shape?", "is there a circle?"]
    single = [answer(answerer.model, processor, None, text, 4) for text in texts]
    assert collect(bare, None, [(0, text) for text in texts]) == single


def test_one_question_shares_all_but_its_last_token(answerer: Answerer, asked: Asked, one_by_one: list[str]) -> None:
    images, rows = asked
    assert collect(answerer, [images[rows[0][0]]], [(0, rows[0][1])]) == one_by_one[:1]


def test_a_template_with_the_picture_behind_the_question_is_refused(answerer: Answerer, asked: Asked) -> None:
    processor = copy.copy(answerer.processor)
    processor.chat_template = "{% for message in messages %}{{ message['content'][-1]['text'] }}<image>{% endfor %}"
    with pytest.raises(UserError, match="image before the question"):
        collect(Answerer(answerer.model, processor, 4), *asked)


def test_a_batch_has_at_least_one_row(answerer: Answerer) -> None:
    with pytest.raises(UserError, match="at least 1, got 0"):
        Answerer(answerer.model, answerer.processor, 4, batch_rows=0)


@pytest.mark.parametrize("settings", [Decoding(beams=3), Decoding(beams=1)])
def test_beam_search_and_a_system_prompt(answerer: Answerer, asked: Asked, settings: Decoding) -> None:
    """As transformers does it from the whole prompt, one question at a time."""
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


def test_sampling_follows_the_seed(answerer: Answerer, asked: Asked) -> None:
    sampled = Answerer(answerer.model, answerer.processor, 8, decoding=Decoding(temperature=1.5, top_p=0.9))
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(collect(sampled, *asked))
    assert found[0] == found[1] != found[2]


def test_a_prompt_that_is_too_long(answerer: Answerer, asked: Asked) -> None:
    """Refused before anything is computed; a long one that fits is not."""
    longest = answerer.model.config.text_config.max_position_embeddings
    fits = "red " * ((longest - 40) // 4)  # more bytes than there are positions, but fewer tokens
    answerer.check_length(True, fits)
    for with_image in (True, False):
        with pytest.raises(UserError, match=f"more than the {longest} that the model takes"):
            answerer.check_length(with_image, "red " * longest)
    with pytest.raises(UserError, match="more than the"):
        collect(answerer, asked[0], [(0, "red " * longest)])


def test_the_prefix_is_not_copied_for_every_batch(answerer: Answerer, asked: Asked) -> None:
    images, rows = asked
    prompts = [answerer._prompt(True, text) for _, text in rows]
    prefix = answerer._prefill(images, prompts[0][: answerer._shared_length(prompts)])
    before = [layer.keys.clone() for layer in prefix.layers]
    batch = answerer._rows(prefix, [2, 0, 2])
    assert [len(layer.keys) for layer in batch.layers] == [3] * len(before)
    assert torch.equal(batch.layers[0].keys[1], before[0][0])
    assert all(torch.equal(layer.keys, keys) for layer, keys in zip(prefix.layers, before, strict=True))
