"""Small coloured images in the layout of imagenette's shards."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from train.studies.photographs.classes import THINGS

SPLITS = {"train-00": 2, "train-01": 1, "val-00": 1, "val-01": 2}  # shard -> photographs per class


def png(seed: int) -> bytes:
    """A noise image of 40 × 30 pixels."""
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def write_shard(file: Path, members: dict[str, bytes]) -> None:
    """Write a tar file without compression."""
    with tarfile.open(file, "w") as shard:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            shard.addfile(info, io.BytesIO(data))


def write_shards(folder: Path) -> Path:
    """Write the shards of `SPLITS`, all of different images."""
    seed = 0
    for name, count in SPLITS.items():
        members = {}
        for wordnet_id in THINGS:
            for _ in range(count):
                members[f"{wordnet_id}/{wordnet_id}_{seed}.png"] = png(seed)
                seed += 1
        write_shard(folder / f"{name}.tar", members)
    return folder


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    (tmp_path / "shards").mkdir()
    return write_shards(tmp_path / "shards")
