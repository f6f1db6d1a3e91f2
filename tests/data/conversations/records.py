"""LLaVA records for tests, and the colours of their images."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

from PIL import Image
from torchvision.transforms.functional import to_tensor

from sparse_vlm.data.conversations.dataset import ConversationDataset
from sparse_vlm.data.conversations.images import FolderImages
from sparse_vlm.data.conversations.samples import parse_sample
from sparse_vlm.data.conversations.sources import Source
from sparse_vlm.vlm.language.turns import ChatFormat


def record(*turns: str, image: str | list[Any] | None = "a.png", **fields: Any) -> dict[str, Any]:
    """Return the LLaVA record of a conversation, the human first."""
    roles = ("human", "gpt") * len(turns)
    conversation = [{"from": role, "value": text} for role, text in zip(roles, turns, strict=False)]
    return {"id": "s1", "conversations": conversation, **({"image": image} if image else {}), **fields}


def save_images(folder: Path) -> None:
    """Write the image a.png, and corrupt.png, which cannot be read."""
    Image.new("RGB", (8, 8), "red").save(folder / "a.png")
    (folder / "corrupt.png").write_bytes(b"\x89PNG no")


def dataset(folder: Path, chat: ChatFormat, *records: dict[str, Any], **options: Any) -> ConversationDataset:
    """Open a data set of records whose images are in `folder`."""
    return ConversationDataset([Source("test", records, FolderImages(folder))], chat, to_tensor, **options)


ONE = record("<image>\nWhat is it?", "red", image="0.png", id="one")
TWO = record("<image> or <image>?", "the first", image=["0.png", "1.png"], id="two")
NONE = record("Q", "A", image=None, id="none")
RED, GREEN = (255, 0, 0), (0, 128, 0)


def colours(source: Source) -> list[list[Any]]:
    """Return the colour of the first pixel of each image, by sample."""
    samples = [parse_sample(one, index) for index, one in enumerate(source.records)]
    for sample in samples:
        for name in sample.images:
            source.images.check(name)
    return [[source.images.open(name).getpixel((0, 0)) for name in sample.images] for sample in samples]


def write_shard(path: Path, files: dict[str, bytes]) -> None:
    """Write a tar file of the given files."""
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def shard_files(folder: Path) -> dict[str, bytes]:
    """Return the files of three samples with one, two and no images."""
    red, green = ((folder / f"{index}.png").read_bytes() for index in range(2))
    texts = {name: json.dumps(one).encode() for name, one in (("one", ONE), ("two", TWO), ("none", NONE))}
    one = {"a/one.json": texts["one"], "a/one.png": red}
    return one | {"two.json": texts["two"], "two.1.png": green, "two.0.png": red, "none.json": texts["none"]}
