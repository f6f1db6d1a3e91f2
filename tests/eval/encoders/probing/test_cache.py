"""The cache: what is found in it, what is computed again, and what is refused."""

import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from eval.encoders.probing.cache import cached, files_digest
from sparse_vlm.data.tar_shards import Member
from sparse_vlm.errors import UserError

ABOUT = {"weights": "a", "tokens": 4}


class Computing:
    """Counts how often it computes."""

    def __init__(self, rows: int = 3) -> None:
        self.calls, self.rows = 0, rows

    def __call__(self) -> dict[str, torch.Tensor]:
        self.calls += 1
        return {"pooled": torch.full((self.rows, 2), float(self.calls))}


def test_results_are_computed_once(tmp_path: Path) -> None:
    compute = Computing()
    for _ in range(2):
        found = cached(tmp_path / "cache", ABOUT, ["pooled"], 3, compute)
        assert torch.equal(found["pooled"], torch.ones(3, 2))
    assert compute.calls == 1
    cached(tmp_path / "cache", {**ABOUT, "tokens": 9}, ["pooled"], 3, compute)
    cached(None, ABOUT, ["pooled"], 3, compute)
    assert compute.calls == 3
    assert len(list((tmp_path / "cache").iterdir())) == 2


@pytest.mark.parametrize("change", ["name", "rows", "dtype", "about"])
def test_what_does_not_fit_is_computed_again(change: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    compute = Computing()
    cached(tmp_path, ABOUT, ["pooled"], 3, compute)
    (file,) = tmp_path.iterdir()
    content = load_file(file)["pooled"]
    metadata = {"about": json.dumps(ABOUT, sort_keys=True)}
    if change == "name":
        save_file({"other": content}, file, metadata)
    elif change == "rows":
        save_file({"pooled": content[:2].contiguous()}, file, metadata)
    elif change == "dtype":
        save_file({"pooled": content.half()}, file, metadata)
    else:
        save_file({"pooled": content}, file)
    with caplog.at_level(logging.WARNING):
        found = cached(tmp_path, ABOUT, ["pooled"], 3, compute)
    assert "do not fit: they are computed again" in caplog.text
    assert (compute.calls, found["pooled"][0, 0].item()) == (2, 2)
    cached(tmp_path, ABOUT, ["pooled"], 3, compute)
    assert compute.calls == 2, "the file was replaced"


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    cached(tmp_path, ABOUT, ["pooled"], 3, Computing())
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(UserError, match=r"cannot be read \(.*\)\. Remove the file"):
        cached(tmp_path, ABOUT, ["pooled"], 3, Computing())


def test_the_digest_follows_files_places_and_order(tmp_path: Path) -> None:
    first, second = tmp_path / "a.png", tmp_path / "b.png"
    first.write_bytes(b"a")
    second.write_bytes(b"b")
    lists = [[first, second], [second, first], [first], [Member(first, "0/a.png", 512, 3), second]]
    lists.append([Member(first, "0/a.png", 1024, 3), second])
    digests = [files_digest(each) for each in lists]
    assert len(set(digests)) == 5
    assert files_digest([first, second]) == digests[0]
    second.write_bytes(b"bb")
    assert files_digest([first, second]) != digests[0]
    with pytest.raises(UserError, match=r"c\.png cannot be read: No such file"):
        files_digest([tmp_path / "c.png"])
