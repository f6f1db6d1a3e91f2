"""Visual tokens on disk: found by the bytes of the image, shared between processes, written atomically."""

from pathlib import Path

import pytest
import torch

from sparse_vlm.data.conversations.visual_tokens import VisualTokenCache, token_key
from sparse_vlm.errors import UserError
from sparse_vlm.vlm.views import View

VIEW = View(0, 4)
TOKENS = {token_key(name, VIEW): torch.rand(4, 6) for name in (b"one", b"two")}


def test_tokens_are_found_by_the_image(tmp_path: Path) -> None:
    cache = VisualTokenCache(tmp_path / "new")
    assert len(cache) == 0
    cache.add(TOKENS)
    for reader in (cache, VisualTokenCache(tmp_path / "new")):
        assert len(reader) == 2
        assert token_key(b"one", VIEW) in reader
        assert torch.equal(reader.tokens(b"two", VIEW), TOKENS[token_key(b"two", VIEW)])
    with pytest.raises(UserError, match=r"not among the 2 of .*new: it changed"):
        cache.tokens(b"three", VIEW)


def test_refresh_finds_the_shards_of_other_processes(tmp_path: Path) -> None:
    mine, other = VisualTokenCache(tmp_path), VisualTokenCache(tmp_path)
    mine.add({token_key(b"one", VIEW): torch.zeros(1, 2, dtype=torch.bfloat16)})
    other.add({token_key(b"two", VIEW): torch.ones(1, 2, dtype=torch.bfloat16)})
    assert token_key(b"two", VIEW) not in mine
    mine.refresh()
    assert mine.tokens(b"two", VIEW).dtype == torch.bfloat16
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


def test_the_same_images_make_one_file(tmp_path: Path) -> None:
    for tokens in (TOKENS, dict(reversed(TOKENS.items()))):
        VisualTokenCache(tmp_path).add(tokens)
    assert len(list(tmp_path.iterdir())) == 1


def test_temporary_files_are_ignored_and_damaged_shards_are_named(tmp_path: Path) -> None:
    (tmp_path / ".x.safetensors.7.tmp").write_bytes(b"cut")
    assert len(VisualTokenCache(tmp_path)) == 0
    (tmp_path / "x.safetensors").write_bytes(b"cut")
    with pytest.raises(UserError, match=r"x\.safetensors cannot be read .* Remove the file"):
        VisualTokenCache(tmp_path)
