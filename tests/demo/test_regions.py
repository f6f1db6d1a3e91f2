"""Numbers of visual tokens and regions of an answer, without a browser."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from demo.events import Events
from demo.generation import encode
from demo.models import OpenModel, TokenRange, open_model
from demo.panel import ALL, Choice, count_tokens, describe_rois, draw_attention, draw_rois
from demo.session import Drawing, SentImage, Session
from demo.uploads import copy_of_side
from sparse_vlm.encoder import create_encoder
from sparse_vlm.vlm.build import build_vlm
from sparse_vlm.vlm.chat import answer as one_answer
from tests.demo.pages import events_of, last

CPU = torch.device("cpu")
BOX = (0.25, 0.25, 0.5, 0.75)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def sparse(vlm_dir: Path) -> OpenModel:
    return open_model(vlm_dir, CPU, torch.float32, None)


@pytest.fixture(scope="module")
def dense(dense_vlm_dir: Path) -> OpenModel:
    return open_model(dense_vlm_dir, CPU, torch.float32, None)


@pytest.fixture(scope="module")
def events(sparse: OpenModel) -> Events:
    return events_of([sparse])


def draw_a_box(events: Events, message: dict[str, Any], session: Session) -> None:
    """Click the corners of BOX."""
    events.boxes.draw(message, session)
    assert session.drawing is not None
    width, height = session.drawing.shown.size
    for x, y in (BOX[:2], BOX[2:]):
        click(events, session, x * width, y * height)


def click(events: Events, session: Session, x: float, y: float) -> dict[Any, Any]:
    place: Any = SimpleNamespace(index=[x, y])
    return events.boxes.choose_corner(place, session)


def test_an_answer_with_another_number_of_tokens(
    events: Events, message: dict[str, Any], vlm: tuple[Any, Any], images: list[Image.Image]
) -> None:
    session = Session()
    shown = last(events.ask(message, session, 0, 1, 4, 11))
    assert session.turns[0].answers == [one_answer(*vlm, images[0], "What is it?", 4, visual_tokens=11)]
    seen = session.seen[0]
    assert seen is not None
    assert [step.rois.shape[1] for step in seen.images[0].steps] == [11] * 3
    assert count_tokens(seen) == "11"
    assert "| visual tokens of an image | 11 |" in shown[events.page.numbers]
    assert "0.0 ms" not in shown[events.page.numbers]  # the time of the tower counts


def test_a_conversation_has_the_new_number_for_all_images(events: Events, message: dict[str, Any]) -> None:
    session = Session()
    last(events.ask(message, session, 0, 1, 4, 11))
    last(events.ask(message, session, 0, 1, 4, 3))
    seen = session.seen[0]
    assert seen is not None
    assert [image.attention.shape[1] for image in seen.images] == [3, 3]
    last(events.retry(session, 0, 1, 4, 6))
    assert session.seen[0] is not None
    assert [image.attention.shape[1] for image in session.seen[0].images] == [6, 6]


def test_a_drawn_box_becomes_a_region(
    events: Events, message: dict[str, Any], vlm: tuple[Any, Any], images: list[Image.Image]
) -> None:
    session = Session()
    draw_a_box(events, message, session)
    shown = last(events.ask(message, session, 0, 1, 4, 5))
    expected = one_answer(*vlm, images[0], "What is it?", 4, visual_tokens=5, regions=[BOX])
    assert session.turns[0].answers == [expected]
    assert session.drawing is None
    assert not shown[events.page.box_area]["visible"]
    seen = session.seen[0]
    assert seen is not None
    (image,) = seen.images
    assert image.region_tokens == 9
    starts = image.steps[0].rois[0, 5:]  # of the region's tokens, in the central square
    assert starts[:, ::2].min() == pytest.approx((BOX[0] * 64 - 8) / 48, abs=1e-4)
    assert starts[:, 1::2].max() == pytest.approx(BOX[3], abs=1e-4)
    assert count_tokens(seen) == "5 + 9 for the box"
    choice = Choice(1, 1, ALL, "token", True, ALL)
    assert "14 tokens (9 of them for the box) cover 100%" in describe_rois(seen, choice)
    assert draw_rois(seen, choice._replace(token=14)).size == draw_attention(seen, choice).size
    file = session.history(0)[0]["content"][0]["path"]
    assert Image.open(file).getpixel((64, 96)) == (0, 0, 0)  # the left edge of the box


def test_attention_to_images_and_regions_is_that_of_the_model(
    events: Events, sparse: OpenModel, message: dict[str, Any]
) -> None:
    session = Session()
    draw_a_box(events, message, session)
    last(events.ask(message | {"text": "What is in the box?"}, session, 0, 1, 4, 5))
    last(events.ask(message | {"text": "And here?"}, session, 0, 1, 4, 5))
    seen = session.seen[0]
    assert seen is not None
    assert [image.attention.shape[1] for image in seen.images] == [14, 5]
    decoded = [image.decode() for image in session.images()]
    inputs = encode(sparse, session.messages(0), decoded, 4, 5)
    sparse.model.set_attn_implementation("eager")
    try:
        with torch.inference_mode():
            out = sparse.model(**inputs, output_attentions=True, use_cache=False)
    finally:
        sparse.model.set_attn_implementation("sdpa")
    visual = (inputs["input_ids"][0] == sparse.processor.image_token_id).nonzero().flatten()
    expected = torch.stack(out.attentions).mean(dim=(0, 1, 2))[-1, visual]
    found = torch.cat([image.attention[0] for image in seen.images])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_looking_again_keeps_the_first_answer(events: Events, message: dict[str, Any]) -> None:
    session = Session()
    last(events.ask(message, session, 0, 1, 4, 6))
    first = session.turns[0].answers[0]
    shown = last(events.look_again(session, 0, 1, 4, 6))
    turn = session.turns[0]
    assert turn.earlier == [first]
    assert turn.attended is not None
    region = turn.attended.each[0]
    assert region is not None
    left, _, right, _ = region.box
    assert 0.125 <= left < right <= 0.875  # in the whole image: the model sees the central square
    _, before, again = shown[events.page.chats[0]]
    assert before["content"] == [first]
    note, file, text = again["content"]
    assert note == "*Looked again, more closely inside the box.*"
    assert file["path"] == region.file
    assert text == turn.answers[0]
    assert session.seen[0] is not None
    assert session.seen[0].images[0].region_tokens == 9
    assert len(session.turns) == 1
    last(events.look_again(session, 0, 1, 4, 6))  # the next look replaces the region
    assert session.seen[0].images[0].region_tokens == 9


def test_looking_again_keeps_the_drawn_box(events: Events, message: dict[str, Any]) -> None:
    session = Session()
    draw_a_box(events, message, session)
    last(events.ask(message, session, 0, 1, 4, 6))
    shown = last(events.look_again(session, 0, 1, 4, 6))
    assert session.turns[0].boxes(0)[0] == BOX
    assert "| visual tokens of an image | 6 + 18 for 2 boxes |" in shown[events.page.numbers]
    assert "24 tokens (18 of them for 2 boxes)" in shown[events.page.rois_text]


def test_a_second_look_that_does_not_fit_changes_nothing(
    events: Events, message: dict[str, Any], warnings: list[str]
) -> None:
    session = Session()
    last(events.ask(message, session, 0, 1, 4))
    answers = list(session.turns[0].answers)
    last(events.look_again(session, 0, 1, 100_000))
    assert "more than the" in warnings[0]
    turn = session.turns[0]
    assert (turn.answers, turn.earlier, turn.attended) == (answers, [], None)


def test_refusals_of_boxes_are_one_sentence_and_keep_the_box(
    events: Events, message: dict[str, Any], warnings: list[str], images: list[Image.Image], tmp_path: Path
) -> None:
    session = Session()
    nothing = {"text": "", "files": []}
    assert not events.boxes.draw(nothing, session)[events.page.box_area]["visible"]
    last(events.look_again(session, 0, 1, 4))
    last(events.ask({"text": "What is it?", "files": []}, session, 0, 1, 4))
    last(events.look_again(session, 0, 1, 4))
    events.boxes.draw(message, session)
    click(events, session, 100, 100)
    click(events, session, 100, 200)
    click(events, session, 100, 10_000)
    last(events.ask(message, session, 0, 1, 4))
    click(events, session, 300, 300)
    images[1].save(tmp_path / "b.png")
    last(events.ask(message | {"files": [str(tmp_path / "b.png")]}, session, 0, 1, 4))
    last(events.ask(message | {"files": []}, session, 0, 1, 4))
    last(events.ask(message | {"text": "word " * 5000}, session, 0, 1, 4))
    assert session.drawing is not None
    assert session.drawing.box is not None
    expected = [
        "no image to draw on",
        "nothing to try again",
        "nothing to look at again: ask about an image",
        "no area",
        "outside the image",
        "one corner only",
        "drawn on a.png, but the last image is now b.png",
        "drawn on a.png, but it is no longer attached",
        "more than the",
    ]
    assert [part for part, text in zip(expected, warnings, strict=True) if part not in text] == [], warnings
    assert all("\n" not in text for text in warnings)
    assert len(session.turns) == 1


def test_a_box_outside_what_the_model_sees_is_refused(
    events: Events, message: dict[str, Any], warnings: list[str]
) -> None:
    session = Session()
    events.boxes.draw(message, session)
    click(events, session, 1, 1)
    click(events, session, 50, 500)
    shown = last(events.ask(message, session, 0, 1, 4))
    assert "outside the central square" in warnings[0]
    assert shown[events.page.question] == message
    assert shown[events.page.box_area]["visible"]
    assert session.turns == []


def test_a_dense_model_beside_a_sparse_one(sparse: OpenModel, dense: OpenModel, message: dict[str, Any]) -> None:
    """Numbers and boxes apply to the model that can have them, and the other one's chat says so."""
    events = events_of([sparse, dense])
    session = Session()
    draw_a_box(events, message, session)
    shown = last(events.ask(message, session, 0, 1, 4, 7))
    assert "| visual tokens of an image | 7 + 9 for the box | 16 |" in shown[events.page.numbers]
    note = f"*Asked without the box. {dense.fixed}*"
    assert shown[events.page.chats[1]][1]["content"][0] == note
    shown = last(events.look_again(session, 0, 1, 4, 7))
    assert "Asked again without a box" in shown[events.page.chats[1]][-1]["content"][0]


def test_a_model_that_cannot_look_again_says_why(
    dense: OpenModel, message: dict[str, Any], warnings: list[str]
) -> None:
    events = events_of([dense])
    assert not events.page.look_again.visible
    assert not events.page.draw.visible
    assert len(events.page.settings) == 3
    session = Session()
    last(events.ask(message, session, 0, 1, 4))
    last(events.look_again(session, 0, 1, 4))
    assert warnings == [f"The model cannot look again. {dense.fixed}"]
    assert session.turns[0].earlier == []


def test_the_numbers_that_a_model_can_have(sparse: OpenModel, dense: OpenModel, llm_dir: Path, tmp_path: Path) -> None:
    assert sparse.fixed == ""
    assert sparse.token_range == TokenRange(6, 1, 64)
    assert "dense ViT" in dense.fixed
    create_encoder("sparseformer-v1-t").save_pretrained(tmp_path / "encoder")
    build_vlm(tmp_path / "encoder", llm_dir, tmp_path / "vlm")
    assert "SparseFormer v1" in open_model(tmp_path / "vlm", CPU, torch.float32, None).fixed


def test_a_small_image_is_large_enough_to_draw_on(images: list[Image.Image]) -> None:
    assert copy_of_side(images[0]).size == (768, 576)
    assert copy_of_side(Image.new("RGB", (5000, 1))).size == (768, 1)
    drawing = Drawing(SentImage(b"", "a.png", ""), copy_of_side(images[0]))
    assert drawing.box is None
