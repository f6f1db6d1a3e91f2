"""Visual tokens on disk, so that a frozen vision tower computes them once and not in every epoch."""

import hashlib
import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from sparse_vlm.encoder.rois import WHOLE_IMAGE
from sparse_vlm.errors import UserError, one_line
from sparse_vlm.vlm.views import View


class VisualTokenCache:
    """Visual tokens in a folder of safetensors shards, by the hash of the image file, their number and their box.

    Several processes may add to the same folder. Shards are written atomically. A shard's name depends only on its
    images, so two processes with the same images write the same file.

    Args:
        folder: the tokens of one encoder. Created when the first shard is added.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._shards: dict[str, Path] = {}
        self.refresh()

    def refresh(self) -> None:
        """Find the shards that other processes have added."""
        known = set(self._shards.values())
        for shard in sorted(self.folder.glob("*.safetensors")):
            if shard not in known:
                self._shards |= dict.fromkeys(_open(shard).keys(), shard)

    def __len__(self) -> int:
        return len(self._shards)

    def __contains__(self, key: str) -> bool:
        return key in self._shards

    def add(self, tokens: Mapping[str, torch.Tensor]) -> None:
        """Write a shard.

        Args:
            tokens: `token_key` -> float[n, C].
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        shard = self.folder / f"{_hash(''.join(sorted(tokens)).encode())[:32]}.safetensors"
        temporary = shard.with_name(f".{shard.name}.{os.getpid()}.tmp")
        save_file(dict(tokens), temporary)
        os.replace(temporary, shard)
        self._shards |= dict.fromkeys(tokens, shard)

    def tokens(self, data: bytes, view: View) -> torch.Tensor:
        """Return the tokens of a view, float[n, C].

        Args:
            data, view: see `token_key`.
        """
        key = token_key(data, view)
        if key not in self._shards:
            raise UserError(
                f"The visual tokens of an image are not among the {len(self)} of {self.folder}: it changed after the "
                "start, or this machine does not see the files that the others wrote there."
            )
        return _open(self._shards[key]).get_tensor(key)


def token_key(data: bytes, view: View) -> str:
    """Return the key of the tokens of a view: the SHA-256 of the image file, the number of tokens, and the box.

    Args:
        data: content of the image file.
        view: with its box in the coordinates of the image, as the data have it.
    """
    box = "" if view.box == WHOLE_IMAGE else "-" + ",".join(map(repr, map(float, view.box)))
    return f"{_hash(data)}-{view.tokens}{box}"


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@lru_cache(maxsize=256)
def _open(shard: Path) -> Any:
    """Return the reader of a shard. It is kept because parsing a header with hundreds of images takes time."""
    try:
        return safe_open(shard, "pt")
    except (OSError, SafetensorError) as error:
        raise UserError(f"The visual tokens in {shard} cannot be read ({one_line(error)}). Remove the file.") from error
