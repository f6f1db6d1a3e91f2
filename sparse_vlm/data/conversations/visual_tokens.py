"""Visual tokens on the disk, so that a frozen vision tower need not compute them in every epoch."""

import hashlib
import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from sparse_vlm.errors import UserError, one_line


class VisualTokenCache:
    """Visual tokens of pictures, in safetensors shards of one folder, by the hash of the picture's file.

    Several processes may add to the same folder. A shard is there whole or not at all, and its name follows from its
    pictures, so that two processes with the same ones write the same file.

    Args:
        folder: of one encoder's tokens; need not exist.

    Raises:
        UserError: a shard is damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._shards: dict[str, Path] = {}
        self.refresh()

    def refresh(self) -> None:
        """Takes notice of shards that other processes have added."""
        known = set(self._shards.values())
        for shard in sorted(self.folder.glob("*.safetensors")):
            if shard not in known:
                self._shards |= dict.fromkeys(_open(shard).keys(), shard)

    def __len__(self) -> int:
        return len(self._shards)

    def __contains__(self, key: str) -> bool:
        return key in self._shards

    def add(self, tokens: Mapping[str, torch.Tensor]) -> None:
        """Writes a shard.

        Args:
            tokens: `picture_key` -> float[n, C].
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        shard = self.folder / f"{picture_key(''.join(sorted(tokens)).encode())[:32]}.safetensors"
        temporary = shard.with_name(f".{shard.name}.{os.getpid()}.tmp")
        save_file(dict(tokens), temporary)
        os.replace(temporary, shard)
        self._shards |= dict.fromkeys(tokens, shard)

    def tokens(self, data: bytes) -> torch.Tensor:
        """float[n, C] of a picture.

        Args:
            data: the picture's file.

        Raises:
            UserError: it is not here.
        """
        key = picture_key(data)
        if key not in self._shards:
            raise UserError(
                f"A picture is not among the {len(self)} of {self.folder}: it changed after the start, or this machine "
                "does not see what the others wrote there."
            )
        return _open(self._shards[key]).get_tensor(key)


def picture_key(data: bytes) -> str:
    """What a picture's tokens are found by: the hash of its file."""
    return hashlib.sha256(data).hexdigest()


@lru_cache(maxsize=256)
def _open(shard: Path) -> Any:
    """A shard's reader; kept, as its header names hundreds of pictures."""
    try:
        return safe_open(shard, "pt")
    except (OSError, SafetensorError) as error:
        raise UserError(f"The visual tokens in {shard} cannot be read ({one_line(error)}). Remove the file.") from error
