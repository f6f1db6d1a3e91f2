"""Bad samples: an error by name, or skipped, counted and reported."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import to_tensor

from sparse_vlm.data.conversation_sources import FolderImages, Source
from sparse_vlm.data.conversations import ChatFormat
from sparse_vlm.data.dataset import ConversationDataset
from sparse_vlm.errors import UserError
from tests.data.test_conversations import record


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    (tmp_path / "corrupt.png").write_bytes(b"\x89PNG no")
    return tmp_path


def dataset(folder: Path, chat: ChatFormat, *records: dict[str, Any], **options: Any) -> ConversationDataset:
    return ConversationDataset([Source("test", records, FolderImages(folder))], chat, to_tensor, **options)


GOOD = record("<image>\nQ", "A")


def test_items_in_the_order_of_the_file(folder: Path, chat: ChatFormat) -> None:
    data = dataset(folder, chat, GOOD, record("Q", "A", image=None))
    assert len(data) == 2
    assert torch.equal(data[0]["images"][0], to_tensor(Image.open(folder / "a.png")))
    assert data[1]["images"] == []


def test_errors_name_the_sample(folder: Path, chat: ChatFormat) -> None:
    with pytest.raises(UserError, match=r"Sample s1: the image .*gone\.png does not exist"):
        dataset(folder, chat, GOOD, record("<image>\nQ", "A", image="gone.png"))
    with pytest.raises(UserError, match=r"Sample s1: The image .*corrupt\.png cannot be read"):
        dataset(folder, chat, record("<image>\nQ", "A", image="corrupt.png"))[0]
    with pytest.raises(UserError, match=r"Sample s1: the image .* cannot be read .*File name too long"):
        dataset(folder, chat, GOOD, record("<image>\nQ", "A", image="x" * 400))
    with pytest.raises(UserError, match=r"Sample s1 has \d+ tokens, more than --model_max_length 20"):
        dataset(folder, chat, GOOD, max_length=20)
    with pytest.raises(UserError, match="--on_bad_sample 'ignore'"):
        dataset(folder, chat, GOOD, on_bad_sample="ignore")


def test_skipping_is_counted_and_reported(folder: Path, chat: ChatFormat, caplog: pytest.LogCaptureFixture) -> None:
    bad = [record("<image>\nQ", "A", image="corrupt.png"), record("Q", "A")]
    with caplog.at_level(logging.WARNING):
        data = dataset(folder, chat, bad[0], GOOD, bad[1], on_bad_sample="skip")
    assert len(data) == 1
    assert "Skipped 2 of 3 samples" in caplog.text
    assert "corrupt.png cannot be read" in caplog.text
    assert "has one image but 0 <image>" in caplog.text
    with pytest.raises(UserError, match="None of the 2 samples is usable"):
        dataset(folder, chat, *bad, on_bad_sample="skip")


def test_a_sample_that_is_too_long_is_found_when_lengths_are_counted(folder: Path, chat: ChatFormat) -> None:
    """Whether at the end of the data or not, and without its image, which would fail as well."""
    long = record("<image>\nQ", "A " * 40, image="corrupt.png", id="long")
    with pytest.raises(UserError, match=r"Sample long has \d+ tokens, more than --model_max_length 40\. Raise"):
        dataset(folder, chat, GOOD, long, max_length=40)


def test_samples_that_are_too_long_are_skipped_and_counted(
    folder: Path, chat: ChatFormat, caplog: pytest.LogCaptureFixture
) -> None:
    long = record("Q", "A " * 40, image=None, id="long")
    with caplog.at_level(logging.WARNING):
        data = dataset(folder, chat, long, GOOD, max_length=40, on_bad_sample="skip")
    assert "Skipped 1 of 2 samples" in caplog.text
    assert "Sample long has" in data.skipped[0]
    assert data.lengths() == dataset(folder, chat, GOOD).lengths() == [len(data[0]["row"].input_ids)]


def test_malformed_samples_are_skipped_like_others(folder: Path, chat: ChatFormat) -> None:
    roles: list[Any] = [["human"], {"human": 1}, None]
    bad = [{"conversations": [{"from": role, "value": "Q"}, {"from": "gpt", "value": "A"}]} for role in roles]
    bad.append(record("<image>\nQ", "A", image="x" * 400))
    data = dataset(folder, chat, GOOD, *bad, on_bad_sample="skip")
    assert len(data) == 1
    assert [reason.split(":")[0].split()[-1] for reason in data.skipped] == ["1", "2", "3", "s1"]


def test_weights_repeat_and_draw(folder: Path, chat: ChatFormat) -> None:
    def source(name: str, weight: float) -> Source:
        records = [record("Q", "A", image=None, id=f"{name}{index}") for index in range(4)]
        return Source(name, records, FolderImages(folder), weight)

    sources = [source("a", 2), source("b", 0.5), source("c", 1.25)]
    datasets = [ConversationDataset(sources, chat, to_tensor, seed=seed) for seed in (0, 0, 1)]
    names = [[entry.sample.id for entry in data.entries] for data in datasets]
    assert names[0] == names[1] != names[2]
    assert names[0][:8] == ["a0", "a1", "a2", "a3"] * 2
    half, more = names[0][8:10], names[0][10:]
    assert len(set(half)) == 2
    assert half == sorted(half)
    assert more[:4] == ["c0", "c1", "c2", "c3"]
    assert len(more) == 5


@pytest.mark.parametrize("independent", [False, True])
def test_no_row_has_more_tokens_than_its_bound(folder: Path, chat: ChatFormat, independent: bool) -> None:
    """Else a sample that is too long would be found in the middle of a training."""
    hard = ["a b c d e f g", "日本語の文字", "🦄🦄", "<|im_end|><|im_start|>", "x" * 50, "\t\n \n  ."]
    turns = [{"from": "human" if k % 2 == 0 else "gpt", "value": text} for k, text in enumerate(hard)]
    system = {"from": "system", "value": "Be brief."}
    asked = [{**turns[0], "value": f"<image>\n{hard[0]}"}, *turns[1:]]
    samples = [GOOD, *({**GOOD, "conversations": part} for part in (asked[:2], asked, [system, *asked]))]
    data = dataset(folder, chat, *samples, independent_turns=independent)
    for entry, length in zip(data.entries, data.lengths(), strict=True):
        assert length <= data._most_tokens(entry.sample) < 10 * length
