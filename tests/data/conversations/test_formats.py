"""All layouts of a conversation give the same sample; unknown keys and fields are named."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from sparse_vlm.data.conversations.samples import parse_sample
from sparse_vlm.data.conversations.sources import open_sources
from sparse_vlm.errors import UserError

TURNS = (("user", "<image>\nIs it red?"), ("assistant", "yes"), ("user", "Why?"), ("assistant", "It is paint."))
IMAGE: dict[str, Any] = {"type": "image"}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


LLAVA = [{"from": ("human", "gpt")[i % 2], "value": words} for i, (_, words) in enumerate(TURNS)]
MESSAGES: list[dict[str, Any]] = [{"role": role, "content": words.replace("<image>\n", "")} for role, words in TURNS]
PARTS = [{"role": role, "content": [text(words.replace("<image>\n", ""))]} for role, words in TURNS]
PARTS[0]["content"] = [text("Is it red?"), IMAGE]
TEXTS = [{"user": "Is it red?", "assistant": "yes", "source": "x"}, {"user": "Why?", "assistant": "It is paint."}]
NULLS = [{"index": None, **part} for part in (text("Is it red?"),)] + [{"index": 0, "text": None, **IMAGE}]


@pytest.mark.parametrize(
    "layout",
    [
        {"image": "a.png", "conversations": LLAVA},
        {"images": ["a.png"], "conversations": json.dumps(LLAVA)},
        {"images": ["a.png"], "conversations": [{"role": role, "content": words} for role, words in TURNS]},
        {"images": ["a.png"], "messages": MESSAGES},
        {"images": ["a.png"], "messages": PARTS},
        {"images": ["a.png"], "messages": [{"role": "user", "content": NULLS}, *PARTS[1:]]},
        {"messages": [{"role": "user", "content": [text("Is it red?"), IMAGE | {"image": "a.png"}]}, *PARTS[1:]]},
        {"images": ["a.png"], "texts": TEXTS},
        {"image": "a.png", "conversations": LLAVA, "video": None, "data_source": "here", "model": ""},
    ],
)
def test_all_layouts_give_the_same_sample(layout: dict[str, Any]) -> None:
    sample = parse_sample(layout, 0)
    assert (sample.images, sample.turns) == (("a.png",), TURNS)


@pytest.mark.parametrize(
    "notes",
    [
        {"model": ""},  # LLaVA-665k's ShareGPT part
        {"domain": {"chest_xray": True}, "pair_id": "1"},  # LLaVA-Med
        {"sample_id": 1, "metadata": {"dataset": "x"}, "choice_list": ["a", "b"]},  # LLaVA-NeXT-Interleave
        {"width": 3, "height": 4, "length": 5},  # InternVL
        {"type": "conv", "split": "train", "language": "en", "score": 0.5},
    ],
)
def test_descriptive_keys_of_public_mixtures_are_ignored(notes: dict[str, Any]) -> None:
    sample = parse_sample({"image": "a.png", "conversations": LLAVA, **notes}, 0)
    assert (sample.images, sample.turns) == (("a.png",), TURNS)


def test_the_error_of_an_unknown_key() -> None:
    with pytest.raises(UserError) as error:
        parse_sample({"id": 1, "system": "You are kind.", "conversations": LLAVA}, 0)
    assert str(error.value) == (
        "Sample 1: Unknown key 'system'. Choices: conversations, image, images, messages, regions, texts, video, "
        "videos. Unknown keys are not ignored: remove it."
    )


def test_several_images() -> None:
    first = {"user": "Which is red?", "assistant": "the second"}
    assert parse_sample({"images": ["a", "b"], "texts": [first]}, 0).turns[0][1] == "<image>\n<image>\nWhich is red?"
    content = [text("Is "), IMAGE | {"index": 1}, text(" or "), IMAGE | {"index": 0}, text(" red?")]
    said: Any = [{"role": "user", "content": content}, {"role": "assistant", "content": "no"}]
    sample = parse_sample({"images": ["a", "b"], "messages": said}, 0)
    assert sample.images == ("b", "a")
    assert sample.turns[0][1] == "Is <image>\n or <image>\n red?"
    blind = parse_sample({"images": [], "messages": MESSAGES}, 0)
    assert (blind.images, blind.turns[0][1]) == ((), "Is it red?")


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        ({"audio": "a.mp3", "conversations": LLAVA}, "Sample number 3: Unknown key 'audio'"),
        ({"imagse": ["a.png"], "messages": MESSAGES}, "Unknown key 'imagse'. Did you mean 'image"),
        ({"images": ["a.png"], "conversations": LLAVA[2:]}, "has one image but 0 <image>"),
        ({"image": "a", "images": ["a"], "conversations": LLAVA}, "has both 'image' and 'images'"),
        ({"messages": MESSAGES, "texts": TEXTS}, "has both 'messages' and 'texts'"),
        ({"conversations": [{"from": "user", "value": "Q"}]}, "Unknown role 'user'. Did you mean 'human'"),
        ({"messages": [{"role": "gpt", "content": "Q"}]}, "Unknown role 'gpt'. Did you mean 'assistant'"),
        ({"conversations": [{"from": "human", "value": "Q", "wieght": 0}]}, "Unknown field of a turn 'wieght'"),
        ({"conversations": [{"from": "human", "text": "Q"}]}, "Unknown field of a turn 'text'"),
        ({"texts": [{"user": "Q", "asistant": "A"}]}, "'asistant'. Did you mean 'assistant'"),
        ({"conversations": [LLAVA[0], {"from": "gpt", "value": 3}]}, "a gpt turn holds 3, which is not a string"),
        ({"conversations": [LLAVA[0], {"from": "gpt"}]}, "a gpt turn has no text"),
        ({"conversations": "[{"}, '"conversations" is a string that is not valid JSON'),
        ({"conversations": ["Q", "A"]}, 'each item of "conversations" must be an object'),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "'image_url'. Did you mean 'image'"),
        ({"images": ["a"], "messages": [{"role": "user", "content": [*NULLS[:1], IMAGE | {"index": 1}]}]}, "indices"),
        ({"images": ["a"], "messages": [{"role": "user", "content": [IMAGE | {"path": "b"}]}]}, "and elsewhere"),
        ({"messages": [{"role": "user", "content": [IMAGE | {"image": {"bytes": b"0"}}]}]}, "holds a dict: give the"),
    ],
)
def test_unknown_and_wrong_values_are_named(bad: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        parse_sample(bad, 3)


@pytest.mark.parametrize(("key", "turns"), [("texts", [TEXTS, TEXTS]), ("messages", [PARTS, MESSAGES])])
def test_tables_of_several_images(tmp_path: Path, image_files: list[bytes], key: str, turns: list[Any]) -> None:
    """Tables of the_cauldron and TRL. The second row has no image."""
    if key == "messages":  # Arrow has one type a column
        parts: Any = PARTS[1:]
        turns = [PARTS, [{"role": "user", "content": [text("Is it red?")]}, *parts]]
    cells = [[{"bytes": data, "path": None} for data in image_files[:1]], []]
    table = datasets.Dataset.from_dict({"images": cells, key: turns})
    table.cast_column("images", datasets.List(datasets.Image())).save_to_disk(tmp_path / "table")
    (source,) = open_sources(f"hf:{tmp_path}/table", "unused")
    first, second = (parse_sample(record, index) for index, record in enumerate(source.records))
    assert first.turns == TURNS
    assert second.turns[0] == ("user", "Is it red?")
    assert not second.images
    assert [source.images.read(name) for name in first.images] == image_files[:1]
    table.add_column("video", ["a.mp4", "b.mp4"]).save_to_disk(tmp_path / "other")
    with pytest.raises(UserError, match=r"The data set .*other has a column 'video': videos are"):
        open_sources(f"hf:{tmp_path}/other", "unused")
