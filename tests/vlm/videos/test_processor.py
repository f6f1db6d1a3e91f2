"""Videos in prompts: placeholders, options, kinds of videos, and the model that sees their frames."""

import base64
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, AutoVideoProcessor

from sparse_vlm.errors import UserError
from sparse_vlm.videos.files import VideoFile
from sparse_vlm.vlm.videos.clips import flat_videos
from sparse_vlm.vlm.videos.processor import SparseFormerVideoProcessor, VideoOptions
from sparse_vlm.vlm.views import unpack_views
from tests.clips import grey_frames, write_clip
from tests.vlm.conftest import Loaded, logits_of

TEXT = "<video>\nWhat happens?"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 frames, 10 per second."""
    noise = np.random.default_rng(0).integers(0, 40, (48, 64, 3), np.uint8)
    return write_clip(tmp_path_factory.mktemp("clip") / "a.mp4", [noise + frame for frame in grey_frames(20)])


@pytest.fixture(scope="module")
def frames(clip: Path) -> list[Image.Image]:
    """The frames that two per second are."""
    return [frame.image for frame in VideoFile(clip).frames([0, 5, 10, 15])]


def encode(vlm: Loaded, **inputs: Any) -> Any:
    return vlm[1](return_tensors="pt", add_special_tokens=False, **inputs)


def test_a_video_answers_as_its_frames(vlm: Loaded, clip: Path, frames: list[Image.Image]) -> None:
    model = vlm[0]
    of_video = encode(vlm, text=TEXT, videos=clip)
    of_images = encode(vlm, text="<image>" * 4 + "\nWhat happens?", images=frames)
    assert torch.equal(of_video["input_ids"], of_images["input_ids"])
    assert torch.equal(of_video["pixel_values_videos"], of_images["pixel_values"])
    assert of_video["video_frames"].tolist() == [4]
    assert torch.equal(logits_of(model, of_video), logits_of(model, of_images))
    options: Any = {"max_new_tokens": 5, "do_sample": False}
    assert torch.equal(model.generate(**of_video, **options), model.generate(**of_images, **options))


def test_tokens_and_times_of_frames(vlm: Loaded, clip: Path, frames: list[Image.Image]) -> None:
    of_video = encode(vlm, text=TEXT, videos=clip, fps=1, frame_tokens=3, timestamps=True)
    text = "0.0s: <image>\n1.0s: <image>\nWhat happens?"
    of_images = encode(vlm, text=text, images=frames[::2], visual_tokens=3)
    assert torch.equal(of_video["input_ids"], of_images["input_ids"])
    assert unpack_views(of_video["views"]) == unpack_views(of_images["views"])
    assert torch.equal(logits_of(vlm[0], of_video), logits_of(vlm[0], of_images))


def test_images_and_videos_in_one_batch(vlm: Loaded, clip: Path, frames: list[Image.Image]) -> None:
    texts = ["<image> and <video> and <image>", "no video", "<video>"]
    lists: Any = {"images": [frames[:2], [], []], "videos": [[str(clip)], [], [clip]]}
    inputs = encode(vlm, text=texts, padding=True, max_frames=2, **lists)
    assert inputs["pixel_values"].shape[0] == 2
    assert inputs["pixel_values_videos"].shape[0] == 4
    assert inputs["views"][:, 0].tolist() == [0, 2, 3, 1, 4, 5]
    alone = encode(
        vlm, text="<image> and <image><image> and <image>", images=[frames[0], frames[0], frames[2], frames[1]]
    )
    row = inputs["input_ids"][0]
    assert torch.equal(row[-alone["input_ids"].shape[1] :], alone["input_ids"][0])
    assert torch.allclose(logits_of(vlm[0], inputs)[0, -1], logits_of(vlm[0], alone)[0, -1], atol=1e-4)
    flat = encode(vlm, text=texts, images=frames[:2], videos=[clip, clip], max_frames=2, padding=True)
    assert torch.equal(flat["pixel_values_videos"], inputs["pixel_values_videos"])


def test_kinds_of_videos(vlm: Loaded, clip: Path, frames: list[Image.Image], tmp_path: Path) -> None:
    expected = encode(vlm, text=TEXT, videos=clip)["pixel_values_videos"]
    array = np.stack([np.asarray(frame) for frame in frames])
    for number, frame in enumerate(frames):
        frame.save(tmp_path / f"{number}.png")
    files = [str(tmp_path / f"{number}.png") for number in range(4)]
    url = "data:video/mp4;base64," + base64.b64encode(clip.read_bytes()).decode()
    read = vlm[1].video_processor.read(clip)
    with clip.open("rb") as file:
        videos: list[Any] = [
            str(clip), [clip], [[clip]], frames, [frames], tuple(frames), array, [array], array[None],
            torch.from_numpy(array).permute(0, 3, 1, 2), list(array), [[files]], url, clip.read_bytes(), file, read,
            VideoFile(clip),
        ]  # fmt: skip
        for video in videos:
            assert torch.equal(encode(vlm, text=TEXT, videos=video)["pixel_values_videos"], expected)


def test_frames_with_and_without_a_rate(vlm: Loaded) -> None:
    frames = [Image.fromarray(frame) for frame in grey_frames(20)]
    assert encode(vlm, text=TEXT, videos=frames)["video_frames"].tolist() == [20]
    assert encode(vlm, text=TEXT, videos=frames, max_frames=8)["video_frames"].tolist() == [8]
    sampled = encode(vlm, text=TEXT, videos=frames, video_metadata={"fps": 10}, return_metadata=True)
    assert sampled["video_metadata"][0].frames_indices == [0, 5, 10, 15]
    assert sampled["video_metadata"][0].timestamps == [0, 0.5, 1, 1.5]
    every = encode(vlm, text=TEXT, videos=frames, video_metadata={"fps": 10}, do_sample_frames=False)
    assert every["video_frames"].tolist() == [20]
    assert encode(vlm, text=TEXT, videos=frames, num_frames=3)["video_frames"].tolist() == [3]
    with pytest.raises(UserError, match="times of frames that are given as images are unknown"):
        encode(vlm, text=TEXT, videos=frames, timestamps=True)


@pytest.fixture
def address(clip: Path) -> Iterator[str]:
    """An http server with the clip."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(clip.parent))

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_video_at_an_address(vlm: Loaded, clip: Path, address: str) -> None:
    expected = encode(vlm, text=TEXT, videos=clip)["pixel_values_videos"]
    found = encode(vlm, text=TEXT, videos=f"{address}/a.mp4")
    assert torch.equal(found["pixel_values_videos"], expected)
    with pytest.raises(UserError, match="cannot be fetched"):
        encode(vlm, text=TEXT, videos=f"{address}/b.mp4")


@pytest.mark.parametrize("key", ["video", "path", "url"])
def test_a_video_in_a_conversation(vlm: Loaded, clip: Path, key: str) -> None:
    parts = [{"type": "video", key: str(clip)}, {"type": "text", "text": "What is <video>?"}]
    found = vlm[1].apply_chat_template(
        [{"role": "user", "content": parts}],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
        processor_kwargs={"fps": 1, "frame_tokens": 3},
    )
    text = vlm[1].apply_chat_template(
        [{"role": "user", "content": "<image><image>\nWhat is §"}], add_generation_prompt=True
    )
    whole = text.replace("<image>", "<image>" * 3).replace("§", "<video>?")
    assert found["input_ids"][0].tolist() == vlm[1].tokenizer(whole, add_special_tokens=False)["input_ids"]
    assert found["video_frames"].tolist() == [2]
    last = vlm[1].apply_chat_template([{"role": "user", "content": parts[::-1]}], add_generation_prompt=True)
    assert last == vlm[1].apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)


def test_placeholders_in_string_content(vlm: Loaded, clip: Path) -> None:
    turns = [{"role": "user", "content": TEXT}, {"role": "assistant", "content": "a <video>"}]
    text = vlm[1].apply_chat_template(turns)
    inputs = encode(vlm, text=text, videos=clip)
    assert int((inputs["input_ids"] == vlm[1].image_token_id).sum()) == 4 * 6


def test_modalities(vlm: Loaded, clip: Path, frames: list[Image.Image]) -> None:
    texts = ["a <video> b <image>", "<image>"]
    inputs = encode(
        vlm, text=texts, images=frames[:2], videos=clip, max_frames=2, padding=True, return_mm_token_type_ids=True
    )
    kinds = inputs["mm_token_type_ids"]
    visual = inputs["input_ids"] == vlm[1].image_token_id
    assert torch.equal(kinds > 0, visual)
    assert kinds[0][visual[0]].tolist() == [2] * 12 + [1] * 6
    assert kinds[1][visual[1]].tolist() == [1] * 6
    assert vlm[0].generate(**inputs, max_new_tokens=2).shape[0] == 2


def test_numbers_for_servers(vlm: Loaded) -> None:
    found = vlm[1]._get_num_multimodal_tokens(image_sizes=[[8, 8]], video_sizes=[[4, 48, 64], [2, 8, 8]])
    assert found["num_image_tokens"] == [6]
    assert "num_video_tokens" not in found  # vLLM would prepare for videos, and fail
    assert vlm[0].config.video_token_id == vlm[1].video_token_id == vlm[1].image_token_id


def test_features_of_videos(vlm: Loaded, clip: Path) -> None:
    model = vlm[0].model
    inputs = encode(vlm, text=[TEXT, TEXT], videos=[clip, clip], max_frames=2)
    with torch.no_grad():
        videos = model.get_video_features(inputs["pixel_values_videos"], inputs["video_frames"]).pooler_output
        images = model.get_image_features(inputs["pixel_values_videos"]).pooler_output
    assert [len(video) for video in videos] == [12, 12]
    assert torch.allclose(torch.cat(videos), torch.cat(images), atol=1e-5)
    with pytest.raises(UserError, match="video_frames names 3 frames, but pixel_values_videos has 4"):
        model.get_video_features(inputs["pixel_values_videos"], torch.tensor([1, 2]))


def test_regions_stay_with_their_image(vlm: Loaded, clip: Path, frames: list[Image.Image]) -> None:
    image, video = {"type": "image", "image": frames[0]}, {"type": "video", "path": str(clip)}
    region, first, last = {"type": "region", "box": [0, 0, 1, 0.5]}, {"type": "text", "text": "A"}, {"type": "text"}
    last["text"] = "B"
    for parts, expected in (
        ([video, image, region, first], "<image>\n<region><video>\nA"),
        ([first, image, region, video], "<image>\n<region><video>\nA"),
        ([first, video, last, image, region], "<image>\n<region>\nA<video>\nB"),
    ):
        turns = [{"role": "user", "content": parts}]
        assert expected in vlm[1].apply_chat_template(turns)
        options = {"return_dict": True, "return_tensors": "pt", "processor_kwargs": {"frame_tokens": 3}}
        inputs = vlm[1].apply_chat_template(turns, tokenize=True, **options)
        assert inputs["views"][:2, 0].tolist() == [0, 0]
        assert inputs["views"][:2, 1].tolist() == [vlm[1].num_image_tokens, vlm[1].region_tokens]
    with pytest.raises(UserError, match="comes after a <video>"):
        vlm[1].apply_chat_template([{"role": "user", "content": [image, video, region]}], tokenize=True)


def test_frames_pass_the_encoder_in_batches(
    vlm: Loaded, clip: Path, frames: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = encode(vlm, text="<image> <video>", images=frames[0], videos=clip, frame_tokens=3)
    whole = logits_of(vlm[0], inputs)
    sizes: list[int] = []
    monkeypatch.setattr("sparse_vlm.vlm.modeling.PIXELS_AT_ONCE", 2 * 64 * 64)
    stem = vlm[0].model.vision_tower.encoder.stem
    hook = stem.register_forward_hook(lambda module, given, output: sizes.append(len(given[0])))
    assert torch.allclose(logits_of(vlm[0], inputs), whole, atol=1e-5)
    hook.remove()
    assert sizes == [2, 2, 1]


def test_saving_and_loading(vlm: Loaded, vlm_dir: Path, clip: Path, tmp_path: Path) -> None:
    vlm[1].save_pretrained(tmp_path)
    (tmp_path / "config.json").write_bytes((vlm_dir / "config.json").read_bytes())
    again = AutoProcessor.from_pretrained(tmp_path)
    alone = AutoVideoProcessor.from_pretrained(tmp_path)
    assert type(again.video_processor) is type(alone) is SparseFormerVideoProcessor
    assert (alone.fps, alone.max_frames) == (2.0, 64)
    expected = encode(vlm, text=TEXT, videos=clip)["pixel_values_videos"]
    assert torch.equal(again(text=TEXT, videos=clip)["pixel_values_videos"], expected)
    assert torch.equal(alone(clip)["pixel_values_videos"], expected)


def test_a_directory_from_before_videos(vlm: Loaded, clip: Path, tmp_path: Path) -> None:
    vlm[1].save_pretrained(tmp_path)
    file = tmp_path / "processor_config.json"
    settings = json.loads(file.read_text())
    for name in ("video_processor", "frame_tokens"):
        del settings[name]
    file.write_text(json.dumps(settings))
    again = type(vlm[1]).from_pretrained(tmp_path)
    assert torch.equal(
        again(text=TEXT, videos=clip)["pixel_values_videos"], vlm[1].video_processor(clip)["pixel_values_videos"]
    )


def test_bad_input(vlm: Loaded, clip: Path, frames: list[Image.Image], tmp_path: Path) -> None:
    (tmp_path / "notes.mp4").write_text("Not a video.\n" * 30)
    region: Any = {"regions": [[0, 0, 1, 1]]}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"text": "What?", "videos": clip}, "has 0 <video>, but the number of videos is 1"),
        ({"text": "<video><video>", "videos": clip}, "has 2 <video>, but the number of videos is 1"),
        ({"text": TEXT}, "has 1 <video>, but the number of videos is 0"),
        ({"text": [TEXT, "a"], "videos": [[], [clip]]}, "Text 1 has 1 <video>, but its list has 0 videos"),
        ({"text": TEXT, "videos": []}, "the number of videos is 0"),
        ({"videos": []}, "list of videos is empty"),
        ({"text": TEXT, "videos": [[]]}, "Text 1 has 1 <video>"),
        ({"text": TEXT, "videos": 5}, "A video must be a file, an address, .* not int"),
        ({"text": TEXT, "videos": np.zeros((0, 8, 8, 3), np.uint8)}, "has no frames"),
        ({"text": TEXT, "videos": tmp_path / "notes.mp4"}, "notes.mp4 cannot be read"),
        ({"text": TEXT, "videos": "data:video/mp4;base64,!"}, "not a data: URL in base64"),
        ({"text": TEXT, "videos": clip, "fps": -1}, "fps must be a number above 0, got -1"),
        ({"text": TEXT, "videos": clip, "max_frames": 0}, "max_frames must be .* got 0"),
        ({"text": TEXT, "videos": clip, "frame_tokens": 0}, "visual tokens, at least 1, got 0"),
        ({"text": TEXT, "videos": clip, "num_frames": 2, "fps": 1}, "num_frames chooses the frames by itself"),
        ({"text": TEXT, "videos": clip, "do_sample_frames": False, "fps": 1}, "shows every frame"),
        ({"text": TEXT, "videos": clip, "video_metadata": [{}, {}]}, "There are 1 videos but 2 video_metadata"),
        ({"text": TEXT, "videos": frames, "video_metadata": {"rate": 3}}, "is not transformers' VideoMetadata"),
        ({"text": TEXT, "videos": frames, "video_metadata": {"fps": 0}}, "video_metadata: fps must be .* got 0"),
        (
            {"text": TEXT, "videos": frames[:2], "video_metadata": {"fps": 1, "frames_indices": [1, 0]}},
            r"video_metadata: frames_indices must be whole numbers in ascending order, got \[1, 0\]",
        ),
        ({"text": "<image><video><region>", "images": frames[0], "videos": clip, **region}, "comes after a <video>"),
    ]
    for inputs, sentence in cases:
        with pytest.raises(UserError, match=sentence):
            encode(vlm, **inputs)
    two = {"type": "video", "path": str(clip), "url": "b.mp4"}
    with pytest.raises(UserError, match="names several"):
        vlm[1].apply_chat_template([{"role": "user", "content": [two]}])
    other = {"type": "video_url", "video_url": {"url": "b.mp4"}}  # vLLM's
    with pytest.raises(UserError, match=r"Unknown type of a part of a message 'video_url'\. Did you mean 'video'"):
        vlm[1].apply_chat_template([{"role": "user", "content": [other]}])


def test_options_are_checked_at_once() -> None:
    for options in ({"fps": 0}, {"max_frames": -1}, {"frame_tokens": 0}):
        with pytest.raises(UserError):
            VideoOptions(**options)  # type: ignore[arg-type]


def test_nesting_of_videos(frames: list[Image.Image]) -> None:
    assert flat_videos(["a.mp4", ["b.mp4"], [["c.png", "d.png"]]]) == ["a.mp4", "b.mp4", ("c.png", "d.png")]
    assert flat_videos([frames, frames[:2]]) == [frames, frames[:2]]
    assert flat_videos(frames) == [frames]
    assert flat_videos([[], []]) == []
