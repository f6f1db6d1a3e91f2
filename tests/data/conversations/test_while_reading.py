"""--check_samples while_reading: bad samples are replaced, counted and reported when they are met."""

import logging
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader

from sparse_vlm.data.conversations.dataset import ConversationDataset, Drawn
from sparse_vlm.data.conversations.length_limit import LengthLimit
from sparse_vlm.errors import UserError
from sparse_vlm.vlm.language.turns import ChatFormat
from tests.data.conversations.records import dataset, record, save_images

BAD = {  # by a word that the report has
    "corrupt": record("<image>\nQ", "A", image="corrupt.png", id="corrupt"),
    "gone": record("<image>\nQ", "A", image="gone.png", id="gone"),
    "malformed": record("Q", "A", id="malformed"),
    "long": record("Q", "A " * 40, image=None, id="long"),
}
GOOD = [record("<image>\nQ", str(number), id=f"good{number}") for number in range(6)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_images(tmp_path)
    return tmp_path


def unchecked(folder: Path, chat: ChatFormat, *records: dict[str, Any], **options: Any) -> ConversationDataset:
    options = {"on_bad_sample": "skip", "limit": LengthLimit(40), **options}
    return dataset(folder, chat, *records, check_samples="while_reading", **options)


def ids(data: ConversationDataset, places: range) -> list[list[int]]:
    return [data[place]["row"].input_ids for place in places]


def replaced(data: ConversationDataset) -> int:
    assert data.substitutes is not None
    return data.substitutes.bad.count


def test_nothing_is_read_before(folder: Path, chat: ChatFormat) -> None:
    data = unchecked(folder, chat, *BAD.values(), *GOOD, on_bad_sample="error")
    assert (len(data), data.skipped) == (10, [])
    assert len(data[4]["images"]) == 1


@pytest.mark.parametrize("word", BAD)
def test_a_bad_sample_is_replaced_counted_and_reported(
    folder: Path, chat: ChatFormat, word: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The substitute depends on the seed and the place alone, not on what was read before."""
    records = [*GOOD[:3], BAD[word], *GOOD[3:]]
    with caplog.at_level(logging.WARNING):
        first = unchecked(folder, chat, *records)
        rows = ids(first, range(7)) + ids(first, range(7))
        assert len(caplog.messages) == 1
    assert f"Sample {word}" in caplog.messages[0]
    assert replaced(first) == 2
    assert rows[3] in rows[:3] + rows[4:7]
    assert unchecked(folder, chat, *records)[3]["row"].input_ids == rows[3]
    others = [unchecked(folder, chat, *records, seed=seed)[3]["row"].input_ids for seed in range(1, 6)]
    assert any(other != rows[3] for other in others)


def test_data_workers_agree_on_substitutes_and_share_the_count(folder: Path, chat: ChatFormat) -> None:
    records = [*GOOD, *BAD.values()]
    alone = ids(unchecked(folder, chat, *records), range(10))
    data = unchecked(folder, chat, *records)
    loader = DataLoader(data, batch_size=1, num_workers=2, collate_fn=lambda items: items[0]["row"].input_ids)
    assert list(loader) == alone
    assert replaced(data) == 4


def test_without_skip_a_bad_sample_is_an_error_when_it_is_read(folder: Path, chat: ChatFormat) -> None:
    """Long samples have a policy of their own."""
    data = unchecked(folder, chat, *BAD.values(), *GOOD, on_bad_sample="error", limit=LengthLimit(40, "skip"))
    for place, word in enumerate(list(BAD)[:3]):
        with pytest.raises(UserError, match=f"^Sample {word}"):
            data[place]
    assert data[3]["row"].input_ids in ids(data, range(4, 10))
    with pytest.raises(UserError, match="--on_bad_sample 'ignore'"):
        unchecked(folder, chat, *GOOD, on_bad_sample="ignore")
    with pytest.raises(UserError, match="None of the 4 samples can be read"):
        unchecked(folder, chat, *BAD.values())[0]


def test_whether_a_sample_is_too_long_does_not_depend_on_the_drawn_number(folder: Path, chat: ChatFormat) -> None:
    whole = unchecked(folder, chat, GOOD[0])[0]["row"]
    limit = LengthLimit(len(whole.input_ids) - 1)
    data = unchecked(folder, chat, GOOD[0], record("Q", "A", image=None), limit=limit)
    assert data[Drawn(0, 1)]["images"] == []  # the other sample's


def test_counting_lengths_finds_bad_texts_before_and_reads_no_image(folder: Path, chat: ChatFormat) -> None:
    data = unchecked(folder, chat, *BAD.values(), *GOOD, count_lengths=True)
    assert [entry.sample.id for entry in data.entries] == ["corrupt", "gone", *(sample["id"] for sample in GOOD)]
    assert [reason.split()[1].rstrip(":") for reason in data.skipped] == ["malformed", "long"]
    lengths = data.lengths()
    assert all(entry.length == length for entry, length in zip(data.entries, lengths, strict=True))
    assert lengths[2:] == [len(row) for row in ids(data, range(2, 8))]
    with pytest.raises(UserError, match="Sample malformed"):
        unchecked(folder, chat, *GOOD, BAD["malformed"], count_lengths=True, on_bad_sample="error")
