"""Training on videos: the prompt of inference, mixtures in all kinds of rows, cached tokens, and the commands."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sparse_vlm.errors import UserError
from sparse_vlm.vlm.chat import encode_prompt
from sparse_vlm.vlm.loading import load_vlm
from sparse_vlm.vlm.videos.processor import VideoOptions
from tests.clips import grey_frames, write_clip
from tests.train.language.test_align import flags
from train import align, instruct
from train.language.data import make_data
from train.language.data_arguments import DataArguments
from train.language.vlm import ModelArguments, load
from train.stages.log import read_log
from train.stages.stage import StageArguments


@pytest.fixture(scope="module")
def folder(data_dir: Path) -> Path:
    """`data_dir` with two clips, videos.json about them, and mixed.json: videos, images and text."""
    samples = []
    for number in range(2):
        frames = [frame + 16 * number for frame in grey_frames(16)]
        write_clip(data_dir / f"{number}.mp4", frames)
        turns = [
            ("human", "<image>\nWhat happens?"),
            ("gpt", "It gets lighter."),
            ("human", "Why?"),
            ("gpt", "No idea"),
        ]
        conversation = [{"from": role, "value": text} for role, text in turns]
        samples.append({"id": f"video {number}", "video": f"{number}.mp4", "conversations": conversation})
    chats = json.loads((data_dir / "chats.json").read_text())
    (data_dir / "videos.json").write_text(json.dumps(samples))
    (data_dir / "mixed.json").write_text(json.dumps([samples[0], chats[0], chats[1], samples[1], *chats[2:4]]))
    return data_dir


@pytest.fixture(scope="module")
def loaded(vlm_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    args = StageArguments(output_dir=str(tmp_path_factory.mktemp("out")), use_cpu=True, bf16=False)
    model, processor = load(ModelArguments(str(vlm_dir)), args)
    return model.eval(), processor


def data(loaded: tuple[Any, Any], folder: Path, file: str, **options: Any) -> Any:
    args = StageArguments(
        output_dir="unused", use_cpu=True, bf16=False, disable_tqdm=True, per_device_train_batch_size=4
    )
    loaded[1].frame_tokens = None  # make_data sets it
    return make_data(DataArguments(str(folder / file), str(folder), **options), args, *loaded, language=True)


@pytest.mark.parametrize("options", [{}, {"fps": 4, "max_frames": 5, "frame_tokens": 4, "timestamps": True}])
def test_training_sees_the_prompt_and_the_frames_of_inference(
    loaded: tuple[Any, Any], folder: Path, options: dict[str, Any]
) -> None:
    made = data(loaded, folder, "videos.json", **options)
    item = made.training[0]
    prompt = encode_prompt(
        loaded[1], None, "What happens?", videos=[folder / "0.mp4"], video_options=VideoOptions(**options)
    )
    ids = prompt["input_ids"][0].tolist()
    assert item["row"].input_ids[: len(ids)] == ids
    batch = made.collator([item])
    assert torch.equal(batch["pixel_values"], prompt["pixel_values_videos"])
    if options:
        assert torch.equal(batch["views"], prompt["views"])


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"packing": True}, {"independent_turns": True}])
def test_mixtures_train_alike_with_pixels_and_cached_tokens(
    loaded: tuple[Any, Any], folder: Path, tmp_path: Path, options: dict[str, bool]
) -> None:
    shown = {"max_frames": 3, "frame_tokens": 4, **options}
    with_pixels = data(loaded, folder, "mixed.json", **shown)
    cached = data(loaded, folder, "mixed.json", cache_visual_tokens=str(tmp_path / "cache"), **shown)
    for items in ((0, 1, 2, 3), (3, 2), (0,)):
        expected, batch = (made.collator([made.training[i] for i in items]) for made in (with_pixels, cached))
        assert "pixel_values" not in batch
        torch.testing.assert_close(loaded[0](**batch).logits, loaded[0](**expected).logits, atol=1e-5, rtol=0)
    alone = with_pixels.collator([with_pixels.training[3]])
    together = with_pixels.collator([with_pixels.training[i] for i in range(4)])
    first, all_logits = (loaded[0](**batch).logits.flatten(0, -2) for batch in (alone, together))
    labels = alone["labels"]
    places = [
        start
        for start in range(len(together["labels"]) - len(labels) + 1)
        if torch.equal(together["labels"][start : start + len(labels)], labels)
    ]
    assert any(torch.allclose(all_logits[start : start + len(labels)], first, atol=1e-4) for start in places)


def test_cached_frames_are_computed_once_per_video(
    loaded: tuple[Any, Any], folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "train"):
        for expected in ("4 computed now, 0 found", "0 computed now, 4 found"):
            data(loaded, folder, "videos.json", max_frames=2, cache_visual_tokens=str(tmp_path / "cache"))
            assert caplog.records[-1].getMessage().startswith("4 sets of visual tokens of 4 images")
            assert caplog.records[-1].getMessage().endswith(expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fps": 0}, "--fps must"),
        ({"max_frames": 0}, "--max_frames must"),
        ({"frame_tokens": 0}, "--frame_tokens must"),
        ({"model_max_length": 20}, "lower --max_frames, --fps or --frame_tokens"),
    ],
)
def test_bad_options_are_sentences(
    loaded: tuple[Any, Any], folder: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        data(loaded, folder, "videos.json", **options)


def test_zero3_refuses_videos(loaded: tuple[Any, Any], folder: Path, zero3: None) -> None:
    made = data(loaded, folder, "videos.json")
    with pytest.raises(UserError, match=r"^Sample video 0 has a video, which does not work with ZeRO-3"):
        _ = made.training[0]


@pytest.mark.slow
@pytest.mark.parametrize("stage", [align, instruct])
def test_the_stages_train_on_a_mixture(vlm_dir: Path, folder: Path, tmp_path: Path, stage: Any) -> None:
    more = {"data_path": folder / "mixed.json", "max_steps": 3, "packing": True, "max_frames": 3, "frame_tokens": 4}
    held_out = {"eval_strategy": "steps", "eval_steps": 3, "eval_data_path": folder / "videos.json"}
    options = {**more, **held_out, "train_sampling_strategy": "group_by_length"}
    assert stage.main(flags(vlm_dir, folder, tmp_path / "out", **options)) == 0
    log = read_log(tmp_path / "out" / "log.jsonl")
    assert sum("loss" in line for line in log) == 3
    assert sum("eval_loss" in line for line in log) == 1
    assert load_vlm(tmp_path / "out")[1].frame_tokens == 4


def test_a_bad_video_ends_a_command_with_one_sentence(
    vlm_dir: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    turns = [{"from": "human", "value": "<image>\nQ"}, {"from": "gpt", "value": "A"}]
    (tmp_path / "bad.json").write_text(json.dumps([{"id": "s", "video": "gone.mp4", "conversations": turns}]))
    assert instruct.main(flags(vlm_dir, folder, tmp_path / "out", data_path=tmp_path / "bad.json")) == 2
    assert "Sample s: the video" in (error := capsys.readouterr().err)
    assert "Traceback" not in error
