"""The VLM on a fake GPU, and with CUDA graphs replayed by the CPU stand-in of tests/encoder."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from sparse_vlm.encoder.runtime.cuda_graphs import replay_from_graphs
from sparse_vlm.errors import UserError
from sparse_vlm.vlm.answering import Answerer
from sparse_vlm.vlm.chat import answer, encode_prompt
from sparse_vlm.vlm.language.prefixes import CACHE
from sparse_vlm.vlm.loading import load_vlm
from sparse_vlm.vlm.towers import use_cuda_graphs
from tests.encoder.runtime.replays import CpuRecorder
from tests.fake_gpu import assert_on_gpu, fake_gpu


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shown", [True, False])
def test_a_prompt(vlm_dir: Path, images: list[Image.Image], shown: bool, dtype: torch.dtype) -> None:
    model, processor = load_vlm(vlm_dir)
    inputs = encode_prompt(processor, images[0] if shown else None, "What?")
    with fake_gpu() as gpu:
        gpu.move(model, dtype)
        on_gpu: dict[str, Any] = {name: value.to("cuda") for name, value in inputs.items()}
        out = model(**on_gpu, labels=on_gpu["input_ids"])
        assert_on_gpu(out.loss, out.logits)
        assert out.logits.dtype == dtype


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")  # when the prefix is copied
def test_questions_about_an_image_share_its_prefix(
    vlm_dir: Path, images: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of `Answerer` except decoding: here `generate` is a single forward pass."""
    model, processor = load_vlm(vlm_dir)
    passes: list[Any] = []

    def generate(input_ids: torch.Tensor, attention_mask: torch.Tensor, **options: Any) -> torch.Tensor:
        assert_on_gpu(input_ids, attention_mask)
        rest = input_ids[:, options[CACHE].get_seq_length() :]
        cache = {CACHE: options[CACHE]}
        passes.append(model(input_ids=rest, attention_mask=attention_mask, **cache).logits)
        return input_ids

    monkeypatch.setattr(model, "generate", generate)
    monkeypatch.setattr(type(processor.tokenizer), "batch_decode", lambda *_, **__: ["words"] * 3)
    answerer = Answerer(model, processor, max_new_tokens=4, batch_rows=3)
    questions = [(0, "What?"), (1, "What is it, please?"), (2, "Where?")]
    monkeypatch.setattr(answerer, "_preprocess", lambda _: torch.randn(1, 3, 64, 64))
    monkeypatch.setattr(answerer, "_incomplete", lambda _: [])  # reads values
    for _, text in questions:
        answerer._prompt(True, text)  # cached outside the fake GPU, where the tokenizer's tensors are real
    answers: Any = Answerer.answer
    with fake_gpu() as gpu, torch.no_grad():
        gpu.move(model)
        (batch,) = answers.__wrapped__(answerer, images, questions)  # torch's inference mode needs a real GPU
        assert_on_gpu(passes)
    assert dict(batch) == dict.fromkeys(range(3), "words")


COLOURS = ("red", "green", "blue", "white")


def test_answers_with_cuda_graphs_are_the_same(worded_vlm_dir: Path) -> None:
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


def test_cuda_graphs_are_refused_where_unavailable(worded_vlm_dir: Path) -> None:
    model, _ = load_vlm(worded_vlm_dir)
    with pytest.raises(UserError, match="CUDA graphs need a CUDA device, and the model is on cpu: add --device cuda"):
        use_cuda_graphs(model)
    model.model.vision_tower = torch.nn.Identity()
    with pytest.raises(UserError, match="CUDA graphs need a SparseFormer, but the vision tower is a Identity"):
        use_cuda_graphs(model)
