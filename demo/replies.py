"""From a question in a session to the answers of all models, step by step."""

import io
from collections.abc import Iterator, Sequence
from contextlib import closing

import torch
from PIL import Image

from demo.looking import look, seen_pixels, visual_attention
from demo.models import OpenModel
from demo.session import SentImage, Session, View
from demo.speaking import Reply, Sampling, encode, speak


def answer(models: Sequence[OpenModel], session: Session, sampling: Sampling) -> Iterator[list[Reply]]:
    """The replies of the models to the session's last question, one after the other, so that none slows another.

    The session's last turn grows with them; its views are set as soon as there is something to show. A conversation
    that does not fit is refused before anything of the session changes.

    Args:
        models: one or two.
        session: with a question; answers that it had are replaced.
        sampling: how words are chosen.

    Raises:
        UserError: the conversation is too long for a model.
    """
    session.stopping = False
    turn = session.turns[-1]
    images = [image.decode() for image in session.images()]
    prompts = [encode(opened, session.messages(k), images, sampling.max_new_tokens) for k, opened in enumerate(models)]
    views: list[View | None] = [None] * len(models)
    turn.answers, session.views = [], views
    replies: list[Reply] = []
    for k, (opened, inputs) in enumerate(zip(models, prompts, strict=True)):
        turn.answers.append("")
        replies.append(Reply(inputs))
        with closing(speak(opened, inputs, sampling)) as growing:
            for replies[k] in growing:
                if session.stopping:
                    break
                turn.answers[k] = replies[k].text
                yield replies
        if turn not in session.turns:  # cleared meanwhile
            return
        views[k] = _view(opened, replies[k])  # of nobody, if cleared meanwhile
        yield replies


def warm_up(models: Sequence[OpenModel]) -> None:
    """One word about a blank image, so that the first visitor's times are not those of the start."""
    session = Session()
    blank = io.BytesIO()
    Image.new("RGB", (64, 64)).save(blank, "png")
    session.begin("What is it?", [SentImage(blank.getvalue(), "blank.png", "")])
    for _ in answer(models, session, Sampling(0, 1, 2)):
        pass


def _view(opened: OpenModel, reply: Reply) -> View | None:
    """What there is to show of a reply; nothing without pictures, words, or a known place of the visual tokens."""
    pictures: torch.Tensor | None = reply.inputs.get("pixel_values")
    if pictures is None or not reply.ids:
        return None
    glances = look(opened, pictures)
    if not glances:
        return None
    attention = visual_attention(opened, reply, glances[-1].rois.shape[1])
    words = [opened.processor.tokenizer.decode([token]) for token in reply.ids]
    return View(seen_pixels(opened, pictures), glances, attention, words)
