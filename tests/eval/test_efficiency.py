"""The benchmark of cost: counts against the published ones, and one real run."""

import json
from pathlib import Path

import pytest
import torch

from eval.efficiency import CONTESTANTS, Contestant, count_gmacs, main

# SparseFormer: spec (with 0.01 of sampling, which is not counted); ViTs: the usual figures.
PUBLISHED = {
    ("vit_base_patch16_clip_quickgelu_224", 224): 17.6,
    ("vit_large_patch14_clip_quickgelu_224", 224): 81.0,
    ("vit_large_patch14_clip_quickgelu_336", 336): 191.0,
    ("sparseformer-clip-b", 224): 3.79,
    ("sparseformer-clip-l", 224): 14.84,
    ("sparseformer-clip-l", 336): 14.84 + 0.15,
}


@pytest.mark.parametrize("item", [item for items in CONTESTANTS.values() for item in items], ids=lambda item: item.name)
def test_gmacs_are_the_published_ones(item: Contestant) -> None:
    with torch.device("meta"):
        model = item.build().eval()
    assert count_gmacs(model, item.image_size) == pytest.approx(PUBLISHED[item.name, item.image_size], rel=5e-3)


@pytest.mark.slow
def test_a_run_leaves_every_measurement(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    assert main(["--sizes", "base", "--repeats", "1", "--output", str(tmp_path / "cost.json")]) == 0
    torch.set_num_threads(threads)
    dense, ours = json.loads((tmp_path / "cost.json").read_text())["results"]["base"]
    assert len(dense["seconds"]) == len(ours["seconds"]) == 1
    assert (dense["tokens"], ours["tokens"]) == (196, 48)
    assert "GMAC" in capsys.readouterr().out


def test_no_repeats_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--repeats", "0"]) == 2
    assert "--repeats must be at least 1, got 0." in capsys.readouterr().err
