"""train/bootstrap.py: an image folder and a teacher become an encoder directory; errors are sentences."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sparse_vlm.bootstrap import open_teacher
from sparse_vlm.encoder import SparseFormer
from train.bootstrap import main
from train.log import read_log


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for index in range(8):
        (folder / str(index % 2)).mkdir(exist_ok=True)
        pixels = generator.integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / str(index % 2) / f"{index}.png")
    return folder


def _arguments(teacher: Path, images: Path, out: Path, *extra: str) -> list[str]:
    fixed = ["--tokens", "4", "--focus_repeats", "2", "--stem_channels", "8", "--per_device_train_batch_size", "4"]
    fixed += ["--learning_rate", "1e-3", "--max_steps", "4", "--use_cpu", "True", "--disable_tqdm", "True"]
    return ["--teacher", str(teacher), "--data_path", str(images), "--output_dir", str(out), *fixed, *extra]


def test_the_result_is_an_encoder_directory(clip_dir: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(_arguments(clip_dir, images, out, "--eval_data_path", str(images))) == 0
    encoder = SparseFormer.from_pretrained(out)
    assert encoder(torch.randn(1, 3, 32, 32)).pooled.shape == (1, 24)
    assert [line["step"] for line in read_log(out / "log.jsonl")] == [1, 2, 3, 4]
    alignment = json.loads((out / "alignment.json").read_text())
    assert alignment["images"] == 8
    assert -1 <= alignment["alignment_cosine"] <= 1
    fates = {fate["fate"] for fate in json.loads((out / "inheritance.json").read_text())["fates"]}
    assert fates == {"new", "dropped", "copied and tuned", "copied and frozen"}
    assert not list(out.glob("checkpoint-*"))


def test_frozen_weights_stay_and_the_others_move(clip_dir: Path, images: Path, tmp_path: Path) -> None:
    assert main(_arguments(clip_dir, images, tmp_path / "out")) == 0
    student, teacher = SparseFormer.from_pretrained(tmp_path / "out"), open_teacher(str(clip_dir))
    for index, same in ((0, False), (3, True)):
        ours, theirs = student.cortex.trunk.blocks[index], teacher.trunk.blocks[index + 2]
        assert torch.equal(ours.attn.qkv.weight, theirs.attn.qkv.weight) == same


@pytest.mark.parametrize(
    ("flag", "value", "sentence"),
    [
        ("--data_path", "nowhere", "There is no image folder nowhere"),
        ("--teacher", "nobody", "Cannot open the teacher 'nobody'"),
        ("--tune_blocks", "9", "Cannot drop 2 and tune 9 of the 6 blocks"),
    ],
)
def test_bad_input_is_one_sentence(
    clip_dir: Path,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flag: str,
    value: str,
    sentence: str,
) -> None:
    assert main([*_arguments(clip_dir, images, tmp_path / "out"), flag, value]) == 2
    assert sentence in capsys.readouterr().err


def test_a_damaged_image_is_named(
    clip_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/broken.png").write_bytes(b"\x89PNG nothing more")
    assert main(_arguments(clip_dir, tmp_path / "images", tmp_path / "out")) == 2
    assert "broken.png" in capsys.readouterr().err
