"""Batched answers with shared prefixes are the answers that the model gives one by one."""

import copy

import pytest
from PIL import Image

from sparse_vlm.data import easy_vqa
from sparse_vlm.data.images import open_image
from sparse_vlm.errors import UserError
from sparse_vlm.vlm.answering import Answerer
from sparse_vlm.vlm.chat import answer

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
