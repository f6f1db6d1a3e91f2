"""--cache_visual_tokens: the tower's own tokens, computed once, never another tower's."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from sparse_vlm.errors import UserError
from tests.train.language.test_align import flags
from train import align, instruct
from train.language.data import make_data
from train.language.data_arguments import DataArguments
from train.language.vlm import ModelArguments, load
from train.stages.log import read_log
from train.stages.stage import StageArguments

Loaded = tuple[Any, Any]


@pytest.fixture
def loaded(vlm_dir: Path, tmp_path: Path) -> Loaded:
    args = StageArguments(output_dir=str(tmp_path / "out"), use_cpu=True, bf16=False)
    model, processor = load(ModelArguments(str(vlm_dir)), args)
    return model.eval(), processor


def data(loaded: Loaded, folder: Path, file: str, cache: Path | None = None, **options: Any) -> Any:
    args = StageArguments(
        output_dir="unused", use_cpu=True, bf16=False, disable_tqdm=True, per_device_train_batch_size=4
    )
    data_args = DataArguments(
        str(folder / file), str(folder), cache_visual_tokens=None if cache is None else str(cache), **options
    )
    return make_data(data_args, args, *loaded, language=False)


def computed(caplog: pytest.LogCaptureFixture) -> str:
    message = caplog.records[-1].getMessage()
    caplog.clear()
    return message.partition(": ")[2]


@pytest.mark.slow
@torch.no_grad()
def test_encoded_images_are_the_projectors_input(loaded: Loaded, data_dir: Path) -> None:
    model = loaded[0]
    pixels = torch.stack([data(loaded, data_dir, "captions.json").training[i]["images"][0] for i in range(2)])
    taken: list[torch.Tensor] = []
    with model.model.multi_modal_projector.register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0])):
        model.model.get_image_features(pixels)
    assert torch.equal(torch.cat(model.model.encode_images(pixels)), taken[0].flatten(0, -2))


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"packing": True}, {"independent_turns": True}])
def test_batches_with_cached_tokens_give_the_same_logits(
    loaded: Loaded, data_dir: Path, tmp_path: Path, options: dict[str, bool]
) -> None:
    """Images and text-only samples; a batch of the latter alone has the blank image."""
    with_pixels = data(loaded, data_dir, "chats.json", **options)
    cached = data(loaded, data_dir, "chats.json", tmp_path / "cache", **options)
    for items in ((0, 1, 2, 3), (1, 3)):
        expected, batch = (made.collator([made.training[i] for i in items]) for made in (with_pixels, cached))
        assert "pixel_values" not in batch
        assert batch["visual_tokens"].shape == (6 * max(1, sum(item % 2 == 0 for item in items)), 128)
        torch.testing.assert_close(loaded[0](**batch).logits, loaded[0](**expected).logits, atol=1e-5, rtol=0)


def test_only_missing_tokens_are_computed(
    loaded: Loaded, data_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.language.visual_cache.SHARD_IMAGES", 4)
    cache = tmp_path / "cache"
    with caplog.at_level(logging.INFO, "train"):
        data(loaded, data_dir, "captions.json", cache)
        assert computed(caplog) == "6 computed now, 0 found"
        data(loaded, data_dir, "chats.json", cache)
        assert computed(caplog) == "0 computed now, 6 found"
        (folder,) = cache.iterdir()
        shards = sorted(folder.glob("*.safetensors"), key=lambda shard: shard.stat().st_size)
        assert len(shards) == 2
        shards[0].unlink()  # as if interrupted before writing it
        data(loaded, data_dir, "captions.json", cache)
        assert computed(caplog) == "2 computed now, 4 found"


@pytest.mark.slow
def test_another_tower_never_gets_these_tokens(
    loaded: Loaded, data_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = tmp_path / "cache"
    model, processor = loaded
    with caplog.at_level(logging.INFO, "train"):
        first = data(loaded, data_dir, "captions.json", cache).training[0]["images"][0]
        with torch.no_grad():
            model.model.vision_tower.encoder.stem.conv.weight += 0.1
        caplog.clear()
        second = data(loaded, data_dir, "captions.json", cache).training[0]["images"][0]
        assert computed(caplog) == "6 computed now, 0 found"
        processor.image_processor.image_mean = [0.1, 0.2, 0.3]
        data(loaded, data_dir, "captions.json", cache)
        assert computed(caplog) == "6 computed now, 0 found"
    assert not torch.allclose(first, second)
    assert len(list(cache.iterdir())) == 3


def test_a_damaged_image_is_named(loaded: Loaded, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"\x89PNG no")
    turns = '[{"from": "human", "value": "<image>\\nQ"}, {"from": "gpt", "value": "A"}]'
    (tmp_path / "bad.json").write_text(f'[{{"id": "s", "image": "bad.png", "conversations": {turns}}}]')
    with pytest.raises(UserError, match=r"^Sample s: The image bad\.png cannot be read"):
        data(loaded, tmp_path, "bad.json", tmp_path / "cache")


@pytest.mark.slow
def test_a_stage_trains_to_the_same_curve(vlm_dir: Path, data_dir: Path, tmp_path: Path) -> None:
    """Held-out images are cached too, and packed rows pass through the trainer."""
    more = {"max_steps": 4, "eval_strategy": "steps", "eval_steps": 2, "eval_data_path": data_dir / "chats.json"}
    curves = []
    for name, cache in (("without", {}), ("with", {"cache_visual_tokens": tmp_path / "cache", "packing": True})):
        assert align.main(flags(vlm_dir, data_dir, tmp_path / name, **more, **cache)) == 0
        log = read_log(tmp_path / name / "log.jsonl")
        curves.append([line.get("loss", line.get("eval_loss")) for line in log])
    assert len(curves[0]) == 4 + 2
    assert curves[1] == pytest.approx(curves[0], abs=1e-4)


@pytest.mark.parametrize("trains", ["unfreeze_mm_vision_tower", "tune_focusing"])
def test_a_tower_that_trains_is_refused(
    vlm_dir: Path, data_dir: Path, tmp_path: Path, trains: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = flags(vlm_dir, data_dir, tmp_path / "out", cache_visual_tokens=tmp_path / "cache", **{trains: True})
    assert instruct.main(arguments) == 2
    assert "--cache_visual_tokens is for a frozen vision tower" in capsys.readouterr().err
