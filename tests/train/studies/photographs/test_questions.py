"""Questions are balanced, deterministic and right."""

import json
import random
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from sparse_vlm.data.conversations.samples import parse_sample
from sparse_vlm.errors import UserError
from train.studies.photographs.classes import THINGS, Photograph, draw, read_photographs, with_article
from train.studies.photographs.questions import (
    KINDS,
    Interviewer,
    caption_records,
    image_records,
    question_lines,
    text_records,
)


@pytest.fixture
def photographs(shards: Path) -> list[Photograph]:
    return read_photographs(shards, "train-{00..01}.tar")


def test_articles() -> None:
    assert [with_article(thing) for thing in ("tench", "English springer")] == ["a tench", "an English springer"]


def test_each_photograph_is_asked_about_in_all_kinds() -> None:
    interviewer, things = Interviewer(random.Random(0)), list(THINGS.values())
    for number in range(40):
        thing = things[number % 10]
        asked = interviewer.ask(thing)
        assert Counter(question.kind for question in asked) == {"name": 1, "yes/no": 2, "choice": 1}
        for question in asked:
            named = [other for other in things if with_article(other) in question.text]
            if question.kind == "name":
                assert (named, question.answer) == ([], thing)
            elif question.kind == "yes/no":
                assert len(named) == 1
                assert (question.answer == "yes") == (named == [thing])
            else:
                assert len(named) == 2
                assert question.answer == thing in named


def test_words_alone_do_not_tell_the_answer() -> None:
    """Yes and no are as frequent for each thing, and so are both places of the right one in a choice."""
    interviewer, things = Interviewer(random.Random(0)), list(THINGS.values())
    asked = [question for number in range(900) for question in interviewer.ask(things[number % 10])]
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for question in asked:
        answers[question.text][question.answer] += 1
    denied = Counter(q.text for q in asked if q.answer == "no")
    assert max(denied.values()) - min(denied.values()) <= 2
    for text, counts in answers.items():
        if text.startswith("is there"):
            assert abs(counts["yes"] - counts["no"]) <= 2
    choices = [q for q in asked if q.kind == "choice"]
    places = Counter((q.answer, q.text.startswith(f"is this {with_article(q.answer)} or")) for q in choices)
    assert set(places) == {(thing, first) for thing in things for first in (True, False)}
    assert set(places.values()) == {45}


def test_records_are_llava_samples(photographs: list[Photograph]) -> None:
    captions = caption_records(photographs)
    texts = text_records(12, random.Random(0))
    chats = image_records(photographs, 40, random.Random(0))
    for index, record in enumerate([*captions, *texts, *chats]):
        parse_sample(record, index)
    shown = {photograph.name: photograph.thing for photograph in photographs}
    assert {record["conversations"][1]["value"] for record in captions} == set(map(with_article, THINGS.values()))
    assert not any("image" in record for record in texts)
    for record in chats:
        turns = record["conversations"]
        assert shown[record["image"]] in [turn["value"] for turn in turns[1::2]]
        assert sum("<image>" in turn["value"] for turn in turns) == 1
    counts = Counter(record["image"] for record in chats)
    assert sorted(counts.values()) == [1] * 20 + [2] * 10  # 40 conversations about 30 photographs


def test_all_draws_follow_the_seed(photographs: list[Photograph]) -> None:
    def made(seed: int) -> str:
        order = random.Random(seed)
        lines = question_lines(draw(photographs, 20, order, "--images"), order)
        return json.dumps([lines, image_records(photographs, 5, order), text_records(5, order)])

    assert made(0) == made(0) != made(1)


def test_questions_are_numbered_and_of_known_kinds(photographs: list[Photograph]) -> None:
    lines = question_lines(photographs, random.Random(0))
    assert [line["question_id"] for line in lines] == list(range(120))
    assert {line["category"] for line in lines} == set(KINDS)


@pytest.mark.parametrize("count", [1, 13, 30])
def test_classes_are_drawn_evenly(photographs: list[Photograph], count: int) -> None:
    drawn = draw(photographs, count, random.Random(0), "--images")
    assert len(set(drawn)) == count
    counts = Counter(photograph.thing for photograph in drawn)
    assert max(counts.values()) - (min(counts.values()) if len(counts) == 10 else 0) <= 1


@pytest.mark.parametrize("count", [0, 31])
def test_more_photographs_than_there_are(photographs: list[Photograph], count: int) -> None:
    with pytest.raises(UserError, match=f"--images must be between 1 and 30, .*; got {count}"):
        draw(photographs, count, random.Random(0), "--images")
