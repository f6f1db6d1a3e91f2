"""Fixtures of the data tests: a chat format with SmolLM2's tokenizer, and the same images in every kind of source."""

import copy
import io
from pathlib import Path

import datasets
import numpy as np
import pytest
import webdataset
from PIL import Image
from transformers import PreTrainedTokenizerBase

from sparse_vlm.vlm.language.turns import ChatFormat


@pytest.fixture(scope="session")
def tokenizer(smollm2_tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """SmolLM2's tokenizer with the special token <image>, as `sparse-vlm build` adds it."""
    tokenizer = copy.deepcopy(smollm2_tokenizer)
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    return tokenizer


@pytest.fixture(scope="session")
def chat(tokenizer: PreTrainedTokenizerBase) -> ChatFormat:
    """SmolLM2's own template with five tokens per image."""
    return ChatFormat(tokenizer, tokenizer.chat_template, tokenizer.convert_tokens_to_ids("<image>"), 5)


IMAGES = 10


@pytest.fixture(scope="session")
def image_files() -> list[bytes]:
    """Ten different PNG files of 24 × 20 pixels."""
    generator = np.random.default_rng(0)
    files = []
    for _ in range(IMAGES):
        buffer = io.BytesIO()
        Image.fromarray(generator.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(buffer, "png")
        files.append(buffer.getvalue())
    return files


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory, image_files: list[bytes]) -> Path:
    """The same images in two subfolders of a folder."""
    folder = tmp_path_factory.mktemp("folder")
    for index, data in enumerate(image_files):
        (folder / str(index % 2)).mkdir(exist_ok=True)
        (folder / str(index % 2) / f"{index}.png").write_bytes(data)
    return folder


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory, image_files: list[bytes]) -> str:
    """The same images in three webdataset shards of 4, 3 and 3 samples with texts; returns the spec with braces."""
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(3):
        with webdataset.TarWriter(str(folder / f"{shard}.tar")) as writer:
            for index in range(shard, IMAGES, 3):
                writer.write({"__key__": f"{index:03}", "png": image_files[index], "txt": "a text"})
    return f"{folder}/{{0..2}}.tar"


@pytest.fixture(scope="session")
def tables(tmp_path_factory: pytest.TempPathFactory, image_files: list[bytes]) -> Path:
    """The same images as saved/ (`save_to_disk`), splits/ (a DatasetDict) and parquet/ (two files), with numbers."""
    folder = tmp_path_factory.mktemp("tables")
    cells = [{"bytes": data, "path": None} for data in image_files]
    features = datasets.Features({"image": datasets.Image(), "number": datasets.Value("int64")})
    rows = datasets.Dataset.from_dict({"image": cells, "number": list(range(IMAGES))}, features=features)
    rows.save_to_disk(folder / "saved", num_shards=2)
    datasets.DatasetDict({"train": rows, "small": rows.select(range(3))}).save_to_disk(folder / "splits")
    (folder / "parquet").mkdir()
    for half in range(2):
        rows.shard(2, half).to_parquet(folder / "parquet" / f"train-{half}.parquet")
    return folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the files of `datasets` out of the user's cache, and its requests away from the hub."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
