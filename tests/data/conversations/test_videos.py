"""Conversations about videos: LLaVA-Video's and other layouts, the frames that a row shows, and bad files by name."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import to_tensor

from sparse_vlm.data.conversations.dataset import ConversationDataset, Drawn
from sparse_vlm.data.conversations.encoding import IGNORE
from sparse_vlm.data.conversations.images import FolderImages
from sparse_vlm.data.conversations.length_limit import LengthLimit
from sparse_vlm.data.conversations.samples import parse_sample
from sparse_vlm.data.conversations.sources import Source, open_sources
from sparse_vlm.data.conversations.videos import VideoSettings
from sparse_vlm.errors import UserError
from sparse_vlm.videos.sampling import FrameSampling
from sparse_vlm.vlm.language.turns import ChatFormat
from sparse_vlm.vlm.views import View
from tests.clips import STEP, grey_frames, write_clip
from tests.data.conversations.records import dataset, record, save_images, write_shard

TWO_PER_SECOND = [0, 5, 10, 15]  # frames of clip.mp4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """clip.mp4 of 20 frames in 2 s, bad.mp4, sound.mp4, the image a.png, and frames/, images that are a video."""
    folder = tmp_path_factory.mktemp("videos")
    write_clip(folder / "clip.mp4", grey_frames(20))
    write_clip(folder / "sound.mp4", [], sound=True)
    (folder / "bad.mp4").write_bytes(b"no video at all")
    (folder / "empty.mp4").touch()
    save_images(folder)
    (folder / "frames").mkdir()
    for number in (10, 2, 1):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / "frames" / f"{number:03}.png")
    (folder / "frames" / "notes.txt").write_text("no frame")
    (folder / "nothing").mkdir()
    return folder


def about(video: Any, question: str = "<image>\nWhat happens?", answer: str = "A", **fields: Any) -> dict[str, Any]:
    """A record as LLaVA-Video writes it."""
    return record(question, answer, image=None, video=video, **fields)


CLIP = about("clip.mp4")


def brightness(images: list[torch.Tensor]) -> list[int]:
    """The numbers of frames of `grey_frames`."""
    return [round(image.mean().item() * 255 / STEP) - 1 for image in images]


@pytest.mark.parametrize(
    "one",
    [
        about("a.mp4", "<image>\nQ"),
        about("a.mp4", "<video>\nQ", data_source="academic", id="s1"),
        about(["a.mp4"], "Q <video>"),
        {
            "id": "s1",
            "videos": ["a.mp4"],
            "messages": [{"role": "user", "content": "<video>Q"}, {"role": "assistant", "content": "A"}],
        },
        {
            "id": "s1",
            "videos": "a.mp4",
            "messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}],
        },
        {"id": "s1", "video": "a.mp4", "texts": [{"user": "Q", "assistant": "A"}]},
        {
            "id": "s1",
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "Q"}, {"type": "video", "path": "a.mp4"}]},
                {"role": "assistant", "content": "A"},
            ],
        },
    ],
)
def test_all_layouts_of_a_video_are_the_same_sample(one: dict[str, Any]) -> None:
    sample = parse_sample(one, 0)
    assert (sample.videos, sample.images) == (("a.mp4",), ())
    assert sample.turns == (("user", "<video>\nQ"), ("assistant", "A"))


def test_images_and_videos_of_one_sample_keep_their_places() -> None:
    mixed = record("<image> then <video>", "A", "and <image>?", "B", image=["1.png", "2.png"], video="a.mp4")
    sample = parse_sample(mixed, 0)
    assert (sample.images, sample.videos) == (("1.png", "2.png"), ("a.mp4",))
    assert [text for _, text in sample.turns][::2] == ["<image> then <video>", "<image>\nand ?"]
    parts = [{"type": "video", "index": 1}, {"type": "image"}, {"type": "video", "index": 0}]
    content = [*parts, {"type": "text", "text": "Q"}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "A"}]
    sample = parse_sample({"image": "1.png", "videos": ["a.mp4", "b.mp4"], "messages": messages}, 0)
    assert sample.videos == ("b.mp4", "a.mp4")
    assert sample.turns[0][1] == "<video>\n<image>\n<video>\nQ"


@pytest.mark.parametrize(
    ("one", "message"),
    [
        (about(["a.mp4", "b.mp4"]), r"has 2 videos but 1 <video> in its text; it needs 2\."),
        (about("a.mp4", "Q"), r"has one video but 0 <video> in its text"),
        (record("<video>\nQ", "A", image=None), r"has no video but 1 <video> in its text"),
        (record("<image>\n<image>Q", "A", video="a.mp4"), r"has one image but 2 <image> in its text"),
        (about("a.mp4", "Q", "<image>"), r"<video> must stand in a human turn"),
        (about(3), r'"video" must be a relative path or a list of them, not 3\.'),
        (about("a.mp4", videos=["b.mp4"]), r"has both 'video' and 'videos'"),
    ],
)
def test_wrong_placeholders_are_sentences(one: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=r"^Sample s1.*" + message):
        parse_sample(one, 0)


def test_an_item_shows_the_frames_of_a_video(folder: Path, chat: ChatFormat) -> None:
    data = dataset(folder, chat, CLIP)
    item = data[0]
    assert brightness(item["images"]) == TWO_PER_SECOND
    tokens = chat.tokens_per_image
    assert item["views"] == [View(place, tokens) for place in range(4)]
    assert item["row"].input_ids.count(chat.image_token_id) == 4 * tokens
    assert data.lengths() == [len(item["row"].input_ids)]


def test_settings_choose_frames_tokens_and_times(folder: Path, chat: ChatFormat) -> None:
    few = ChatFormat(chat.tokenizer, chat.chat_template, chat.image_token_id, 7, frame_tokens=3)
    mixed = record("<image> then <video>", "A", image="a.png", video="clip.mp4")
    videos = VideoSettings(FrameSampling(10, 3), timestamps=True)
    data = ConversationDataset([Source("test", [mixed], FolderImages(folder))], few, to_tensor, videos=videos)
    item = data[0]
    assert brightness(item["images"][1:]) == [0, 6, 13]
    assert item["views"] == [View(0, 7), View(1, 3), View(2, 3), View(3, 3)]
    times = "0.0s: <image>\n0.6s: <image>\n1.3s: <image>"
    shown = few.tokenizer.decode(item["row"].input_ids)
    assert times.replace("<image>", "<image>" * 3) in shown
    drawn = data[Drawn(0, 9)]  # another number of tokens of images leaves frames alone
    assert [view.tokens for view in drawn["views"]] == [9, 3, 3, 3]


def test_independent_turns_share_the_frames(folder: Path, chat: ChatFormat) -> None:
    two = record("<video>\nWhat?", "A", "Where?", "B", image=None, video="clip.mp4")
    row = dataset(folder, chat, two, independent_turns=True)[0]["row"]
    visual = [
        segment for token, segment in zip(row.input_ids, row.segments, strict=True) if token == chat.image_token_id
    ]
    assert visual == [0] * 4 * chat.tokens_per_image
    single = [
        dataset(folder, chat, about("clip.mp4", f"<video>\n{question}", answer))[0]["row"]
        for question, answer in (("What?", "A"), ("Where?", "B"))
    ]
    for turn, alone in enumerate(single, start=1):
        kept = [place for place, segment in enumerate(row.segments) if segment in (0, turn)]
        assert [row.input_ids[place] for place in kept] == alone.input_ids
        assert [row.targets[place] for place in kept] == alone.targets
    both = record("<image> <video> Q", "A", image="a.png", video="clip.mp4")
    with pytest.raises(UserError, match="has 2 images and videos: --independent_turns"):
        dataset(folder, chat, both, independent_turns=True)[0]


def test_lengths_are_bounded_without_opening_files(folder: Path, chat: ChatFormat) -> None:
    """4 of 64 possible frames: too long only by the bound, so the file decides."""
    data = dataset(folder, chat, CLIP, limit=LengthLimit(500))
    row = data[0]["row"]
    assert len(row.input_ids) <= 500 < data.reader.rows.most_tokens(data.entries[0].sample)
    with pytest.raises(UserError, match=r"has \d+ tokens, more than --model_max_length 40\..*lower --max_frames"):
        dataset(folder, chat, CLIP, limit=LengthLimit(40))
    long = about("clip.mp4", "<video>\nQ", "A " * 60)
    full = dataset(folder, chat, long)[0]["row"]
    cut = dataset(folder, chat, long, limit=LengthLimit(len(full.input_ids) - 20, "truncate"))
    assert len(cut[0]["images"]) == 4
    assert len(cut.truncated) == 1


def test_frames_after_a_truncated_row_are_not_read(folder: Path, chat: ChatFormat) -> None:
    two = record("<video>\nQ", "A", "<video>\nQ", "B", image=None, video=["clip.mp4", "bad.mp4"])
    with pytest.raises(UserError, match=r"Sample s1: The video .*bad\.mp4 cannot be read"):
        dataset(folder, chat, two)[0]
    two["video"] = ["clip.mp4", "clip.mp4"]
    once = dataset(folder, chat, CLIP)[0]["row"]
    data = dataset(folder, chat, two, limit=LengthLimit(len(once.input_ids) + 5, "truncate"))
    item = data[0]
    assert len(item["images"]) == len(item["views"]) == 4
    assert sum(target != IGNORE for target in item["row"].targets) >= 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gone.mp4", r"the video .*gone\.mp4 does not exist\. Check --video_folder"),
        ("https://a.org/b.mp4", r"the video 'https://a\.org/b\.mp4' is an address: download"),
        ("bad.mp4", r"The video .*bad\.mp4 cannot be read: it is not a video"),
        ("empty.mp4", r"The video .*empty\.mp4 is empty"),
        ("sound.mp4", r".*sound\.mp4 has sound but no video"),
        ("a.png", r".*a\.png cannot be read"),
        ("nothing", r"The folder .*nothing of a video's frames has no images"),
    ],
)
def test_bad_files_are_named_and_skipped(folder: Path, chat: ChatFormat, name: str, message: str) -> None:
    with pytest.raises(UserError, match=r"^Sample s1: " + message):
        dataset(folder, chat, about(name))[0]
    skipping = dataset(folder, chat, about(name), CLIP, on_bad_sample="skip")
    assert len(skipping) == len(skipping.skipped) == 1
    reading = dataset(folder, chat, about(name), CLIP, on_bad_sample="skip", check_samples="while_reading")
    assert brightness(reading[0]["images"]) == TWO_PER_SECOND


def test_a_folder_of_images_is_a_video(folder: Path, chat: ChatFormat) -> None:
    data = dataset(folder, chat, about("frames"))
    assert [round(255 * image[0].mean().item()) for image in data[0]["images"]] == [1, 2, 10]
    for videos, expected in ((VideoSettings(FrameSampling(1, 2)), [1, 2]), (VideoSettings(timestamps=True), None)):
        shown = ConversationDataset(
            [Source("t", [about("frames")], FolderImages(folder))], chat, to_tensor, videos=videos
        )
        if expected is None:
            with pytest.raises(UserError, match="have no times: leave out --timestamps"):
                _ = shown[0]
        else:
            assert [round(255 * image[0].mean().item()) for image in shown[0]["images"]] == expected


def test_videos_have_a_folder_of_their_own_in_mixtures_too(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "clips.json").write_text(json.dumps([CLIP]))
    (tmp_path / "mix.yaml").write_text(
        f"- data_path: clips.json\n  image_folder: /elsewhere\n  video_folder: {folder}\n- data_path: clips.json\n"
    )
    for source in (
        *open_sources(tmp_path / "clips.json", "/elsewhere", folder),
        open_sources(tmp_path / "mix.yaml", ".")[0],
    ):
        assert source.images.video("clip.mp4") == folder / "clip.mp4"
    with pytest.raises(UserError, match="does not exist"):
        open_sources(tmp_path / "mix.yaml", ".")[1].images.video("clip.mp4")
    (tmp_path / "mix.yaml").write_text("- data_path: clips.json\n  video_folder: 3\n")
    with pytest.raises(UserError, match="video_folder is 3"):
        open_sources(tmp_path / "mix.yaml", ".")


def test_shards_have_no_videos(tmp_path: Path, chat: ChatFormat) -> None:
    write_shard(tmp_path / "0.tar", {"a.json": json.dumps(CLIP).encode()})
    with pytest.raises(
        UserError, match=r"^Sample s1: the video 'clip\.mp4' cannot be read: videos are files that LLaVA"
    ):
        ConversationDataset(open_sources(f"wds:{tmp_path}/0.tar", "."), chat, to_tensor)


def test_each_video_is_one_file_with_its_frames(folder: Path, chat: ChatFormat) -> None:
    other = record("<video>\nWhere?", "B", image=None, video="clip.mp4", id="s2")
    found = dataset(folder, chat, CLIP, other, record("<image>\nQ", "A")).distinct_files([3, 5])
    sizes = {file.name: (file.size, [(view.image, view.tokens) for view in views]) for file, views in found}  # type: ignore[attr-defined]
    tokens = chat.tokens_per_frame
    assert sizes == {"clip.mp4": (4, [(place, tokens) for place in range(4)]), "a.png": (1, [(0, 3), (0, 5)])}
    contents = found[0][0].contents()
    assert len(set(contents)) == 4
    np.testing.assert_array_equal(found[0][0].decoded(contents)[1], found[0][0].opened()[1])
