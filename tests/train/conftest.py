"""Tiny data sets for the stages, and an uninterrupted bootstrap."""

import json
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sparse_vlm.encoder import SparseFormerConfig

COLOURS = ("red", "green", "blue", "yellow", "black", "white")


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six one-coloured images; captions.json (one turn each), text.json (no images), chats.json (both, two turns)."""
    folder = tmp_path_factory.mktemp("data")
    captions, chats, text = [], [], []
    for colour in COLOURS:
        Image.new("RGB", (20, 12), colour).save(folder / f"{colour}.png")

        def turns(*texts: str) -> list[dict[str, str]]:
            return [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(texts)]

        image = {"id": colour, "image": f"{colour}.png"}
        captions.append(image | {"conversations": turns("<image>\nDescribe it.", f"It is {colour}.")})
        chats.append(image | {"conversations": turns("<image>\nWhich colour?", colour, "Is it pink?", "no")})
        text.append({"id": f"text {colour}", "conversations": turns(f"Say {colour}.", colour)})
    for name, samples in (
        ("captions", captions),
        ("chats", [chats[0], text[0], chats[1], text[1], *chats[2:]]),
        ("text", text),
    ):
        (folder / f"{name}.json").write_text(json.dumps(samples))
    return folder


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight noise images in two folders."""
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for index in range(8):
        (folder / str(index % 2)).mkdir(exist_ok=True)
        pixels = generator.integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / str(index % 2) / f"{index}.png")
    return folder


@pytest.fixture
def damaged(images: Path, tmp_path: Path) -> Path:
    """The eight images plus two unreadable ones, one in each folder."""
    folder = tmp_path / "damaged"
    shutil.copytree(images, folder)
    for name in ("0/3.png", "1/4.png"):  # between 2 and 4, 3 and 5
        (folder / name).write_bytes(b"\x89PNG nothing more")
    return folder


@pytest.fixture(scope="session")
def image_shards(tmp_path_factory: pytest.TempPathFactory, images: Path) -> str:
    """The same images in three webdataset shards."""
    folder = tmp_path_factory.mktemp("shards")
    files = sorted(images.rglob("*.png"))
    for number in range(3):
        with tarfile.open(folder / f"{number}.tar", "w") as shard:
            for file in files[number::3]:
                shard.add(file, file.name)
    return f"wds:{folder}/{{0..2}}.tar"


@pytest.fixture(scope="session")
def whole(clip_dir: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted bootstrap on these images, with a checkpoint of each step."""
    from tests.train.vision.bootstrap_runs import RESUMABLE, arguments
    from train.bootstrap import main

    out = tmp_path_factory.mktemp("whole") / "out"
    options = {**RESUMABLE, "save_steps": 1, "keep_checkpoints": True, "save_total_limit": 9}
    assert main(arguments(clip_dir, images, out, eval_data_path=images, **options)) == 0
    return out


@pytest.fixture(scope="session")
def small_encoder_dir(tmp_path_factory: pytest.TempPathFactory, tiny_config: SparseFormerConfig) -> Path:
    """An untrained SparseFormer for images of 32 pixels."""
    from sparse_vlm.encoder import SparseFormer

    directory = tmp_path_factory.mktemp("small_encoder") / "encoder"
    torch.manual_seed(0)
    preprocessing = replace(tiny_config.preprocessing, resize=32, crop=32)
    SparseFormer(replace(tiny_config, preprocessing=preprocessing)).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def class_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four folders of one-coloured images, and labels.csv: contains red, contains blue, always 1."""
    from tests.train.vision.finetune_runs import CLASSES

    folder = tmp_path_factory.mktemp("folders")
    rows = ["image,reddish,bluish,always"]
    for colour in CLASSES:
        (folder / colour).mkdir()
        for width in (20, 30):
            Image.new("RGB", (width, 24), colour).save(folder / colour / f"{width}.png")
            rows.append(f"{colour}/{width}.png,{int(colour in ('red', 'white'))},{int(colour in ('blue', 'white'))},1")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture
def zero3() -> Iterator[None]:
    """Set transformers' state as after --deepspeed train/configs/deepspeed/zero3.json."""
    from transformers.integrations import HfDeepSpeedConfig
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    config = HfDeepSpeedConfig({"zero_optimization": {"stage": 3}})
    yield
    del config
    unset_hf_deepspeed_config()
