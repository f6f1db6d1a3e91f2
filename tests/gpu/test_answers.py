"""Greedy answers on a GPU equal the CPU's: single questions, batches, the demo, and CUDA graphs."""

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from demo.answers import answer as answers_of
from demo.models import open_model
from demo.session import SentImage, Session
from sparse_vlm.vlm.answering import Answerer
from sparse_vlm.vlm.chat import answer
from sparse_vlm.vlm.decoding import Decoding
from sparse_vlm.vlm.loading import load_vlm
from sparse_vlm.vlm.towers import use_cuda_graphs

IMAGES = [Image.new("RGB", (48, 64), colour) for colour in ("red", "green", "blue", "white")]
QUESTION = "what color is it?"
CPU = torch.device("cpu")


@pytest.fixture
def expected(words_dir: Path) -> list[str]:
    """The CPU's answers to single questions."""
    model, processor = load_vlm(words_dir)
    answers = [answer(model, processor, image, QUESTION, 6) for image in IMAGES]
    assert len(set(answers)) > 1
    return answers


def opened(words_dir: Path, device: torch.device) -> tuple[Any, Any]:
    model, processor = load_vlm(words_dir)
    model.to(device)  # type: ignore[arg-type]
    return model, processor


def test_one_by_one(words_dir: Path, expected: list[str], device: torch.device) -> None:
    model, processor = opened(words_dir, device)
    assert [answer(model, processor, image, QUESTION, 6) for image in IMAGES] == expected


def test_from_cuda_graphs(words_dir: Path, expected: list[str], device: torch.device) -> None:
    model, processor = opened(words_dir, device)
    if device.type == "cuda":
        use_cuda_graphs(model)
    assert [answer(model, processor, image, QUESTION, 6) for image in IMAGES] == expected


def test_batches(words_dir: Path, expected: list[str], device: torch.device) -> None:
    answerer = Answerer(*opened(words_dir, device), max_new_tokens=6, batch_rows=3)
    batches = answerer.answer(IMAGES, [(place, QUESTION) for place in range(len(IMAGES))])
    assert [text for _, text in sorted(pair for batch in batches for pair in batch)] == expected


def test_the_demo(words_dir: Path, expected: list[str], device: torch.device) -> None:
    """The demo's answer, RoIs and attention, without its page."""
    model = open_model(words_dir, device, torch.float32, None)
    session = Session()
    data = io.BytesIO()
    IMAGES[0].save(data, "png")
    session.begin(QUESTION, [SentImage(data.getvalue(), "red.png", "")])
    for _ in answers_of([model], session, Decoding(), 6):
        pass
    assert session.turns[0].answers == expected[:1]
    (seen,) = session.seen
    assert seen is not None
    (image,) = seen.images
    assert image.attention.device == image.steps[0].rois.device == CPU
    assert image.attention.isfinite().all()
