"""The handlers without a browser: a refusal loses neither the typed question nor earlier answers."""

from pathlib import Path
from typing import Any

import gradio as gr
import pytest
import torch

from demo.events import Events
from demo.models import open_model
from demo.session import Session
from tests.demo.pages import events_of, last


@pytest.fixture(scope="module")
def events(vlm_dir: Path) -> Events:
    return events_of([open_model(vlm_dir, torch.device("cpu"), torch.float32, None)])


@pytest.mark.slow
def test_a_question_that_is_too_long_goes_back_into_the_box(
    events: Events, message: dict[str, Any], warnings: list[str]
) -> None:
    session = Session()
    long = message | {"text": "word " * 5000}
    shown = last(events.ask(long, session, 0, 1, 4))
    assert "more than the" in warnings[0]
    assert shown[events.page.question] == long
    assert shown[events.page.chats[0]] == []
    assert session.turns == []


@pytest.mark.slow
def test_a_retry_that_does_not_fit_keeps_the_answer(
    events: Events, message: dict[str, Any], warnings: list[str]
) -> None:
    session = Session()
    last(events.ask(message, session, 0, 1, 4))
    answered, seen = list(session.turns[0].answers), list(session.seen)
    assert answered[0]
    shown = last(events.retry(session, 0, 1, 100_000))
    assert "more than the" in warnings[0]
    assert session.turns[0].answers == answered
    assert session.seen == seen
    assert [part["role"] for part in shown[events.page.chats[0]]] == ["user", "assistant"]
    assert last(events.retry(session, 0, 1, 4))[events.page.chats[0]] == shown[events.page.chats[0]]
    assert len(warnings) == 1


def test_too_many_images_are_refused_and_kept(events: Events, message: dict[str, Any], warnings: list[str]) -> None:
    session = Session()
    shown = last(events.ask(message | {"files": message["files"] * 3}, session, 0, 1, 4))
    assert warnings == ["3 images are too many for one question: send at most 2."]
    assert shown == {events.page.question: gr.skip()}


def test_decoding_options_out_of_range_are_refused(
    events: Events, message: dict[str, Any], warnings: list[str]
) -> None:
    """The sliders cannot send them, but the page's API can."""
    session = Session()
    shown = last(events.ask(message, session, -1, 1, 4))
    assert warnings == ["--temperature must be 0 (greedy) or more, got -1."]
    assert shown == {events.page.question: gr.skip()}
    assert session.turns == []


def test_images_are_kept_as_they_were_sent(events: Events, message: dict[str, Any]) -> None:
    """A decoded image takes more memory: a file of a megabyte may hold a hundred million pixels."""
    session = Session()
    last(events.ask(message, session, 0, 1, 4))
    assert session.images()[0].data == Path(message["files"][0]).read_bytes()
    assert session.images()[0].name == "a.png"


def test_the_controls_appear_with_an_answer(events: Events, message: dict[str, Any]) -> None:
    page, session = events.page, Session()
    assert not any(control.visible for control in page.controls)
    shown = last(events.ask(message, session, 0, 1, 4))
    image, step, token, *others = page.controls[1:]
    assert not shown[image].visible  # there is only one image
    assert shown[step].visible
    assert shown[token].visible
    hidden = events.clear(session)
    assert not any(hidden[control]["visible"] for control in (image, step, token, *others))
