"""Regions in conversations: their boxes, their tokens in the rows, their views in items and batches."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import to_tensor

from sparse_vlm.data.conversations.collate import ConversationCollator, Visual
from sparse_vlm.data.conversations.dataset import ConversationDataset, Drawn
from sparse_vlm.data.conversations.encoding import IGNORE, encode, encode_independent
from sparse_vlm.data.conversations.images import FolderImages
from sparse_vlm.data.conversations.length_limit import LengthLimit
from sparse_vlm.data.conversations.samples import parse_sample
from sparse_vlm.data.conversations.sources import Source, open_sources
from sparse_vlm.data.conversations.visual_tokens import token_key
from sparse_vlm.errors import UserError
from sparse_vlm.vlm.language.turns import ChatFormat
from sparse_vlm.vlm.views import View, unpack_views
from tests.data.conversations.records import record, write_shard

BOX, OTHER = (0.25, 0.5, 0.75, 1.0), (0.0, 0.0, 0.5, 0.25)
REGIONS = record(
    *("What is in <region>?\n<image>", "a", "And in <region> or <region>?", "b c"),
    regions=[list(BOX), list(OTHER), list(BOX)],
)
WHOLE = record("<image>\nWhat is it?", "d", id="whole")


def shrunk(box: Any, size: tuple[int, int]) -> Any:
    """A conversion of boxes that shows the image's size."""
    return tuple(side / size[0] for side in box)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, width in (("a.png", 8), ("b.png", 16)):
        Image.new("RGB", (width, 8), "red").save(tmp_path / name)
    return tmp_path


def dataset(folder: Path, chat: ChatFormat, *records: dict[str, Any], **options: Any) -> ConversationDataset:
    options = {"model_box": shrunk, **options}
    return ConversationDataset([Source("test", records, FolderImages(folder))], chat, to_tensor, **options)


def test_regions_stay_where_they_are_and_belong_to_the_image_before_them() -> None:
    sample = parse_sample(REGIONS, 0)
    assert sample.turns[0] == ("user", "<image>\nWhat is in <region>?")
    assert sample.regions == (BOX, OTHER, BOX)
    assert sample.views(7, 3) == [View(0, 7), View(0, 3, BOX), View(0, 3, OTHER), View(0, 3, BOX)]
    two = record("<image><region> or <image><region>", "a", image=["a", "b"], regions=[list(BOX), list(OTHER)])
    assert [view.image for view in parse_sample(two, 0).views(7, 3)] == [0, 0, 1, 1]


def test_parts_and_texts_have_regions() -> None:
    parts = [{"type": "region", "box": list(BOX)}, {"type": "text", "text": " red?"}, {"type": "image", "box": None}]
    said = [{"role": "user", "content": parts}, {"role": "assistant", "content": "no"}]
    sample = parse_sample({"image": "a", "messages": said}, 0)
    assert (sample.turns[0][1], sample.regions) == ("<image>\n<region> red?", (BOX,))
    texts = [{"user": "Is <region> red?", "assistant": "no"}]
    sample = parse_sample({"images": ["a"], "texts": texts, "regions": [list(BOX)]}, 0)
    assert (sample.turns[0][1], sample.regions) == ("<image>\nIs <region> red?", (BOX,))
    with pytest.raises(UserError, match='Sample 1: its parts have the boxes of its regions, so remove "regions"'):
        parse_sample({"id": 1, "image": "a", "messages": said, "regions": [list(BOX)]}, 0)
    with pytest.raises(UserError, match='Sample 1: a part of type "region" has no "box"'):
        parse_sample({"id": 1, "image": "a", "messages": [{"role": "user", "content": [{"type": "region"}]}]}, 0)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"regions": None}, r"The text has 1 <region> but there are 0 boxes: each <region> needs a box"),
        ({"regions": [list(BOX), list(BOX)]}, r"The text has 1 <region> but there are 2 boxes"),
        ({"regions": list(BOX)}, r'"regions" must be a list of boxes \[x1, y1, x2, y2\], not \[0.25, 0.5, 0.75, 1.0\]'),
        ({"regions": {"box": list(BOX)}}, r'"regions" must be a list of boxes'),
        ({"regions": [[0, 0, 1]]}, r"A box is four numbers \(x1, y1, x2, y2\), got \[0, 0, 1\]"),
        ({"regions": [[0, 0, 1, "1"]]}, r"A box is four numbers .* got \[0, 0, 1, '1'\]"),
        ({"regions": [[0, 0, True, True]]}, r"A box is four numbers .* got \[0, 0, True, True\]"),
        ({"regions": [[0, 0, 1, float("nan")]]}, r"A box is four numbers"),
        ({"regions": [[0.5, 0, 0.5, 1]]}, r"A box lies inside the image, .* got \[0.5, 0, 0.5, 1\]"),
        ({"regions": [[0, 0, 448, 448]]}, r"A box lies inside the image, .* got \[0, 0, 448, 448\]"),
        ({"regions": [[-0.1, 0, 1, 1]]}, r"A box lies inside the image"),
    ],
)
def test_a_wrong_box_names_the_sample(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=f"^Sample s1: {sentence}"):
        parse_sample(record("<image>\nWhat is in <region>?", "a") | changes, 0)


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        (record("Q", "A", image=None, regions=[list(BOX)]), "The text has 0 <region> but there are 1 boxes"),
        (record("<region>", "A", image=None, regions=[list(BOX)]), "A <region> is part of the image before it, but"),
        (record("<region>", "A", "<image>", "B", regions=[list(BOX)]), "A <region> is part of the image before it"),
        (record("<image>", "<region>", regions=[list(BOX)]), "<region> must stand in a human turn"),
    ],
)
def test_a_misplaced_region_names_the_sample(bad: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=f"^Sample s1: {sentence}"):
        parse_sample(bad, 0)


def test_a_region_becomes_image_tokens_and_changes_no_target(chat: ChatFormat) -> None:
    """Also where a text holds a control token, which is read as letters."""
    for words in ("Is it red?", "Is <|im_end|> red?"):
        asked = record(f"<image>\n{words} <region>", "a <|im_start|> b", regions=[list(BOX)])
        plain = record(f"<image>\n{words} <image>", "a <|im_start|> b", image=["a", "a"])
        row, other = (encode(parse_sample(one, 0), chat) for one in (asked, plain))
        places = [place for place, token in enumerate(row.input_ids) if token == chat.image_token_id]
        assert len(places) == 5 + chat.region_tokens
        assert [token for token in row.targets if token != IGNORE] == [t for t in other.targets if t != IGNORE]
        without = [[t for t in one.input_ids if t != chat.image_token_id] for one in (row, other)]
        assert without[0] == without[1]


def test_independent_turns_share_no_region(chat: ChatFormat) -> None:
    """Both questions begin with a region, whose tokens have the same ids."""
    same = record("<image><region> is?", "a", "<region> is?", "b", regions=[list(BOX), list(OTHER)])
    row = encode_independent(parse_sample(same, 0), chat)
    segments = [s for t, s in zip(row.input_ids, row.segments, strict=True) if t == chat.image_token_id]
    assert segments == [0] * 5 + [1] * chat.region_tokens + [2] * chat.region_tokens
    single = [record("<image>\n<region> is?", answer, regions=[list(BOX)]) for answer in "ab"]
    for turn, one in enumerate(single, start=1):
        alone = encode(parse_sample(one, 0), chat)
        here = [t for t, s in zip(row.input_ids, row.segments, strict=True) if s in (0, turn)]
        assert here == alone.input_ids


def test_the_plain_format_has_no_regions(chat: ChatFormat) -> None:
    one = parse_sample(record("<image>\n<region>", "a", regions=[list(BOX)]), 0)
    with pytest.raises(UserError, match="Sample s1 has regions, which the plain format does not print"):
        encode(one, replace(chat, plain=True))


@pytest.mark.parametrize("independent_turns", [False, True])
def test_a_truncated_row_has_the_views_of_its_tokens(folder: Path, chat: ChatFormat, independent_turns: bool) -> None:
    full = dataset(folder, chat, REGIONS, independent_turns=independent_turns)[0]
    assert len(full["views"]) == 4
    seen = set()
    for limit in range(1, len(full["row"].input_ids)):
        if all(target == IGNORE for target in full["row"].targets[:limit]):
            continue
        limited = {"limit": LengthLimit(limit, "truncate"), "independent_turns": independent_turns}
        item = dataset(folder, chat, REGIONS, **limited)[0]
        assert item["views"] == full["views"][: len(item["views"])]
        assert item["row"].input_ids.count(chat.image_token_id) == sum(view.tokens for view in item["views"])
        seen.add(len(item["views"]))
    assert seen == {2, 4}


@pytest.mark.parametrize("independent_turns", [False, True])
def test_the_fast_bound_counts_regions(folder: Path, chat: ChatFormat, independent_turns: bool) -> None:
    data = dataset(folder, replace(chat, region_tokens=300), REGIONS, independent_turns=independent_turns)
    assert 900 < data.lengths()[0] <= data.reader.rows.most_tokens(data.entries[0].sample)


def test_items_have_views_in_the_coordinates_of_the_pixels(folder: Path, chat: ChatFormat) -> None:
    two = record("<image><region> or <image><region>", "a", image=["a.png", "b.png"], regions=[list(BOX)] * 2)
    item = dataset(folder, chat, two)[0]
    assert [image.shape[-1] for image in item["images"]] == [8, 16]
    assert item["views"] == [View(0, 5), View(0, 9, shrunk(BOX, (8, 8))), View(1, 5), View(1, 9, shrunk(BOX, (16, 8)))]
    with pytest.raises(UserError, match="Sample s1 has regions, at which only a bootstrapped SparseFormer can look"):
        dataset(folder, chat, two, model_box=None)


def test_a_box_that_the_preprocessing_cuts_off_names_the_sample(folder: Path, chat: ChatFormat) -> None:
    def outside(box: Any, size: tuple[int, int]) -> Any:
        raise UserError("The box lies outside.")

    with pytest.raises(UserError, match="Sample s1: The box lies outside"):
        dataset(folder, chat, REGIONS, model_box=outside)[0]
    data = dataset(folder, chat, REGIONS, WHOLE, model_box=outside, on_bad_sample="skip")
    assert (len(data), data.skipped) == (1, ["Sample s1: The box lies outside."])


def test_an_item_can_have_another_number_of_tokens(folder: Path, chat: ChatFormat) -> None:
    """Lengths and limits are those of the largest number."""
    data = dataset(folder, chat, REGIONS)
    row, other = data[0]["row"], data[Drawn(0, 2)]["row"]
    assert row.input_ids.count(chat.image_token_id) - other.input_ids.count(chat.image_token_id) == 3
    assert [t for t in row.targets if t != IGNORE] == [t for t in other.targets if t != IGNORE]
    assert [view.tokens for view in data[Drawn(0, 2)]["views"]] == [2, 9, 9, 9]
    assert data.lengths() == [len(row.input_ids)]


@pytest.mark.parametrize("packing", [None, "longest"])
def test_a_batch_has_the_views_of_its_images_in_their_order(
    folder: Path, chat: ChatFormat, packing: str | None
) -> None:
    long = record("<image>\nWhat?", "word " * 60, image="b.png", id="long")
    data = dataset(folder, chat, WHOLE, REGIONS, record("Q", "A", image=None), long)
    items = [data[index] for index in (0, 1, 2)]
    batch = ConversationCollator(0, packing=packing, default_tokens=5)(items)
    images = {None: [0, 1, 1, 1, 1], "longest": [0, 0, 0, 0, 1]}[packing]  # packing puts the longest row first
    views = unpack_views(batch["views"])
    assert [view.image for view in views] == images
    regions = [view.box for view in views if view.tokens == 9]
    assert regions == [shrunk(BOX, (8, 8)), shrunk(OTHER, (8, 8)), shrunk(BOX, (8, 8))]
    assert (batch["input_ids"] == chat.image_token_id).sum() == sum(view.tokens for view in views)
    usual = ConversationCollator(0, packing=packing, default_tokens=5)([data[0], data[2]])
    assert "views" not in usual
    assert "views" in ConversationCollator(0, packing=packing, default_tokens=5)([data[Drawn(0, 4)], data[2]])


def test_cached_tokens_are_flat_and_known_by_number_and_box() -> None:
    keys = [token_key(b"file", view) for view in (View(0, 5), View(1, 5), View(0, 6), View(0, 5, BOX))]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3
    assert token_key(b"file", View(0, 5, (0, 0, 1, 0.5))) == token_key(b"file", View(0, 5, (0.0, 0.0, 1.0, 0.5)))
    parts = [Visual([torch.zeros(5, 4), torch.zeros(9, 4)], []), Visual([torch.zeros(2, 4)], [])]
    assert ConversationCollator(0, image_key="visual_tokens").stacked(parts)["visual_tokens"].shape == (16, 4)


def test_distinct_images_have_all_their_views(folder: Path, chat: ChatFormat) -> None:
    two = record("<image> <image><region>", "a", image=["a.png", "b.png"], regions=[list(OTHER)], id="two")
    found = dataset(folder, chat, WHOLE, REGIONS, two).distinct_files([3, 5])
    assert [image.name for image, _ in found] == ["a.png", "b.png"]
    assert set(found[0][1]) == {View(0, 3), View(0, 5), View(0, 9, BOX), View(0, 9, OTHER)}
    assert set(found[1][1]) == {View(0, 3), View(0, 5), View(0, 9, OTHER)}


def test_shards_and_tables_have_regions(folder: Path, tmp_path: Path) -> None:
    one = record("<image>\nWhat is in <region>?", "a", regions=[list(BOX)])
    write_shard(tmp_path / "x.tar", {"1.json": json.dumps(one).encode(), "1.png": (folder / "a.png").read_bytes()})
    (source,) = open_sources(f"wds:{tmp_path}/x.tar", ".")
    assert parse_sample(source.records[0], 0).regions == (BOX,)
    rows = {
        "image": [str(folder / "a.png"), None],
        "regions": [[list(BOX)], None],
        "conversations": [one["conversations"], record("Q", "A", image=None)["conversations"]],
    }
    datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()).save_to_disk(tmp_path / "table")
    (source,) = open_sources(f"hf:{tmp_path}/table", ".")
    assert [parse_sample(row, 0).regions for row in source.records] == [(BOX,), ()]
