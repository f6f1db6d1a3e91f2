"""A VLM whose SparseFormer is replayed answers as before; captures by the stand-in of tests/encoder."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from sparse_vlm.encoder.runtime.cuda_graphs import replay_from_graphs
from sparse_vlm.errors import UserError
from sparse_vlm.vlm.answering import Answerer
from sparse_vlm.vlm.build import load_vlm
from sparse_vlm.vlm.chat import answer
from sparse_vlm.vlm.towers import use_cuda_graphs
from tests.encoder.runtime.replays import CpuRecorder

COLOURS = ("red", "green", "blue", "white")


def test_answers_are_the_same(worded_vlm_dir: Path) -> None:
    recorder = CpuRecorder()
    plain, processor = load_vlm(worded_vlm_dir)
    replayed, _ = load_vlm(worded_vlm_dir)
    replay_from_graphs(replayed.model.vision_tower.encoder, recorder)
    images = [Image.new("RGB", (64, 64), colour) for colour in COLOURS]
    for image in images:
        assert answer(replayed, processor, image, "what color?", 5) == answer(plain, processor, image, "what color?", 5)
    assert recorder.replays == len(COLOURS) - 1
    questions = [(place, text) for place in range(4) for text in ("what color?", "is it red?")]
    found, expected = (
        dict(pair for batch in Answerer(model, processor, 5).answer(images, questions) for pair in batch)
        for model in (replayed, plain)
    )
    assert found == expected


def test_where_they_cannot_be_used_is_a_sentence(worded_vlm_dir: Path) -> None:
    model, _ = load_vlm(worded_vlm_dir)
    with pytest.raises(UserError, match="CUDA graphs need a CUDA device, and the model is on cpu: add --device cuda"):
        use_cuda_graphs(model)
    model.model.vision_tower = torch.nn.Identity()
    with pytest.raises(UserError, match="CUDA graphs are for a SparseFormer, and the vision tower is a Identity"):
        use_cuda_graphs(model)
