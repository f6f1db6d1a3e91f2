"""Bad samples are errors that name them, or are skipped, counted and reported; lengths and weights."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import to_tensor

from sparse_vlm.data.conversations.dataset import ConversationDataset
from sparse_vlm.data.conversations.encoding import IGNORE
from sparse_vlm.data.conversations.images import FolderImages
from sparse_vlm.data.conversations.length_limit import LengthLimit
from sparse_vlm.data.conversations.samples import parse_sample
from sparse_vlm.data.conversations.sources import Source
from sparse_vlm.errors import UserError
from sparse_vlm.vlm.language.turns import ChatFormat
from tests.data.conversations.records import dataset, record, save_images


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_images(tmp_path)
    return tmp_path


GOOD = record("<image>\nQ", "A")


def test_items_have_the_order_of_the_file(folder: Path, chat: ChatFormat) -> None:
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
        dataset(folder, chat, GOOD, limit=LengthLimit(20))[0]
    with pytest.raises(UserError, match="--on_bad_sample 'ignore'"):
        dataset(folder, chat, GOOD, on_bad_sample="ignore")
    with pytest.raises(UserError, match=r"--too_long 'cut'.*error, skip, truncate"):
        LengthLimit(20, "cut")


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


@pytest.mark.parametrize("independent_turns", [False, True])
def test_a_long_sample_is_found_at_the_start(folder: Path, chat: ChatFormat, independent_turns: bool) -> None:
    """The sample is the last one, and its image, which is damaged, is not read."""
    long = record("<image>\nQ", "A " * 40, "Q", "B", image="corrupt.png", id="long")
    with pytest.raises(UserError, match=r"Sample long has \d+ tokens, more than --model_max_length 40\. Raise"):
        dataset(folder, chat, GOOD, long, limit=LengthLimit(40), independent_turns=independent_turns)
    with pytest.raises(UserError, match=r"more than the language model's 40 positions\. Shorten .* --too_long skip or"):
        dataset(folder, chat, GOOD, long, limit=LengthLimit(40, of_model=True), independent_turns=independent_turns)


def test_too_long_skip_skips_only_long_samples(
    folder: Path, chat: ChatFormat, caplog: pytest.LogCaptureFixture
) -> None:
    """Other bad samples are still errors."""
    long = record("Q", "A " * 40, image=None, id="long")
    with caplog.at_level(logging.WARNING):
        data = dataset(folder, chat, long, GOOD, limit=LengthLimit(40, "skip"))
    assert [entry.sample.id for entry in data.entries] == ["s1"]
    assert "Skipped 1 of 2 samples" in caplog.text
    assert "Sample long has" in data.skipped[0]
    lost = record("<image>\nQ", "A", image="gone.png")
    with pytest.raises(UserError, match=r"gone\.png does not exist"):
        dataset(folder, chat, long, lost, limit=LengthLimit(40, "skip"))


@pytest.mark.parametrize("on_bad_sample", ["error", "skip"])
def test_long_samples_are_truncated_and_counted(
    folder: Path, chat: ChatFormat, caplog: pytest.LogCaptureFixture, on_bad_sample: str
) -> None:
    """One row ends within an answer; another sample would have no answer left."""
    long = record("<image>\nQ", "A " * 40, id="long")
    question = record("Q " * 40, "A", image=None, id="question")
    with caplog.at_level(logging.WARNING):
        data = dataset(
            folder, chat, long, GOOD, question, limit=LengthLimit(40, "truncate"), on_bad_sample=on_bad_sample
        )
    full = dataset(folder, chat, long)[0]["row"]
    row = data[0]["row"]
    assert (row.input_ids, row.targets) == (full.input_ids[:40], full.targets[:40])
    assert (row.positions, row.segments) == (full.positions[:40], full.segments[:40])
    assert len(data[0]["images"]) == 1
    assert data.lengths() == [40, len(data[1]["row"].input_ids)]
    assert data.truncated == [f"Sample long has {len(full.input_ids)} tokens; 40 are kept."]
    assert "Truncated 1 of 3 samples to --model_max_length 40:" in caplog.text
    assert "Skipped 1 of 3 samples" in caplog.text
    assert data.skipped[0].startswith("Sample question has")
    assert data.skipped[0].endswith("no answer begins before that.")


@pytest.mark.parametrize("independent_turns", [False, True])
def test_a_truncated_row_is_a_prefix_of_the_full_row(folder: Path, chat: ChatFormat, independent_turns: bool) -> None:
    """At every limit, the row ends at a predicting position, its images are complete, and no others are read."""
    turns = ("<image>\nQ", "A B", "<image><image>\nQ", "C D E", "Q", "F")
    images: Any = ["a.png", "a.png", "corrupt.png"]
    if independent_turns:
        turns, images = ("<image>\nQ", "A B", "Q", "C D E", "Q", "F"), "a.png"
    sample = record(*turns, image=images)
    full = ConversationDataset(
        [Source("test", [sample], FolderImages(folder))], chat, to_tensor, independent_turns=independent_turns
    ).reader.rows.row(parse_sample(sample, 0), chat.tokens_per_image)[0]
    seen = set()
    for limit in range(1, len(full.input_ids)):
        kept = [place for place in range(limit) if full.targets[place] != IGNORE]
        options: Any = {"limit": LengthLimit(limit, "truncate"), "independent_turns": independent_turns}
        if not kept:
            with pytest.raises(UserError, match="None of the 1 samples is usable"):
                dataset(folder, chat, sample, **options)
            continue
        data = dataset(folder, chat, sample, **options)
        row, views = data.reader.rows.row(data.entries[0].sample, chat.tokens_per_image)
        names = [data.entries[0].sample.images[view.image] for view in views]
        assert row.input_ids == full.input_ids[: kept[-1] + 1]
        assert row.targets == full.targets[: kept[-1] + 1]
        assert row.input_ids.count(chat.image_token_id) == chat.tokens_per_image * len(names)
        seen.add(len(names))
        if "corrupt.png" not in names:
            assert len(data[0]["images"]) == len(names)
    assert seen == ({1} if independent_turns else {1, 3})


@pytest.mark.parametrize("independent_turns", [False, True])
def test_the_fast_bound_is_an_upper_bound(folder: Path, chat: ChatFormat, independent_turns: bool) -> None:
    for words in ("A", "word " * 30, "é 漢字 🙂", "<|im_end|><|im_start|>", "x\n\n  \ty"):
        sample = record("<image>\nQ", words, words, "A")
        data = dataset(folder, chat, sample, independent_turns=independent_turns)
        assert data.lengths()[0] <= data.reader.rows.most_tokens(data.entries[0].sample)


def test_long_samples_are_skipped_and_counted(folder: Path, chat: ChatFormat, caplog: pytest.LogCaptureFixture) -> None:
    long = record("Q", "A " * 40, image=None, id="long")
    with caplog.at_level(logging.WARNING):
        data = dataset(folder, chat, long, GOOD, limit=LengthLimit(40), on_bad_sample="skip")
    assert "Skipped 1 of 2 samples" in caplog.text
    assert "Sample long has" in data.skipped[0]
    assert data.lengths() == dataset(folder, chat, GOOD).lengths() == [len(data[0]["row"].input_ids)]


def test_malformed_samples_are_skipped(folder: Path, chat: ChatFormat) -> None:
    roles: list[Any] = [["human"], {"human": 1}, None]
    bad = [{"conversations": [{"from": role, "value": "Q"}, {"from": "gpt", "value": "A"}]} for role in roles]
    bad.append(record("<image>\nQ", "A", image="x" * 400))
    data = dataset(folder, chat, GOOD, *bad, on_bad_sample="skip")
    assert len(data) == 1
    assert [reason.split(":")[0].split()[-1] for reason in data.skipped] == ["1", "2", "3", "s1"]


def test_weights_repeat_and_draw_samples(folder: Path, chat: ChatFormat) -> None:
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
def test_the_fast_bound_holds_for_hard_texts(folder: Path, chat: ChatFormat, independent: bool) -> None:
    """Otherwise, a long sample would stop a training run halfway."""
    hard = ["a b c d e f g", "日本語の文字", "🦄🦄", "<|im_end|><|im_start|>", "x" * 50, "\t\n \n  ."]
    turns = [{"from": "human" if k % 2 == 0 else "gpt", "value": text} for k, text in enumerate(hard)]
    system = {"from": "system", "value": "Be brief."}
    asked = [{**turns[0], "value": f"<image>\n{hard[0]}"}, *turns[1:]]
    samples = [GOOD, *({**GOOD, "conversations": part} for part in (asked[:2], asked, [system, *asked]))]
    data = dataset(folder, chat, *samples, independent_turns=independent)
    for entry, length in zip(data.entries, data.lengths(), strict=True):
        assert length <= data.reader.rows.most_tokens(entry.sample) < 10 * length
