"""Time by part: the parts cover the encoder, each exactly once."""

import json
from pathlib import Path

import pytest
import torch

from eval.cost.parts import by_part, count_parts, main
from sparse_vlm.encoder import SparseFormer
from sparse_vlm.measure.towers import open_tower


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny", "sparseformer-v1-t@64", "timm:vit_tiny_patch16_224@32"])
@pytest.mark.usefixtures("tiny_variant")
def test_the_parts_add_up(name: str) -> None:
    tower = open_tower(name)
    assert sum(count_parts(tower).values()) == pytest.approx(tower.gmacs, rel=1e-9)


@pytest.mark.slow
def test_the_published_parts() -> None:
    """Compare with the spec's numbers for 224 pixels, which list mixing and its generator separately."""
    parts = count_parts(open_tower("sparseformer-clip-l"))
    assert parts["stem"] == pytest.approx(0.118, abs=1e-3)
    assert parts["mixing"] == pytest.approx(0.21 + 0.43, rel=0.1)
    assert parts["cortex"] == pytest.approx(13.0, rel=5e-3)
    assert parts["focusing attention, MLP"] == pytest.approx(0.81, rel=0.05)


def test_time_counts_for_the_innermost_part(tiny_encoder: SparseFormer) -> None:
    """With a meter that increases by one per reading, a part gets one for each interval that ends inside it."""
    readings = iter(range(10_000))
    with torch.inference_mode(), by_part(tiny_encoder, lambda: float(next(readings))) as sums:
        tiny_encoder(torch.randn(1, 3, 64, 64))
    assert dict(sums) == {
        "rest": 4,  # before, between and after stem, focus and cortex
        "stem": 1,
        "cortex": 1,
        "sampling": 6,  # three sampling steps, each before and after the mixing
        "mixing": 3,
        "RoIs": 5,  # three encodings, two adjustments
        "focusing attention, MLP": 9,  # between the eight parts that it calls itself
    }
    assert not any(module._forward_hooks for module in tiny_encoder.modules())


@pytest.mark.slow
def test_the_report_has_every_measurement(
    tmp_path: Path, tiny_variant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "profile.json"
    models = [f"{tiny_variant}@32", "timm:vit_tiny_patch16_224@32"]
    assert main(["--models", *models, "--repeats", "2", "--output", str(output)]) == 0
    ours, dense = json.loads(output.read_text())["profiles"]
    assert len(ours["seconds"]) == 2, "the warm-up is not recorded"
    assert sum(ours["shares"].values()) == pytest.approx(1)
    assert {"stem", "sampling", "mixing", "cortex"} <= set(ours["shares"])
    assert set(dense["shares"]) == {"stem", "blocks"}
    assert output.with_suffix(".png").stat().st_size > 1000
    assert "sampling" in output.with_suffix(".md").read_text()
    assert "of matmul" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--models", "open_clip:ViT-B-32"], "The parts of open_clip:ViT-B-32 are not known here"),
        (["--batch_size", "0"], "--batch_size must be at least 1, got 0."),
        (["--threads", "0"], "--threads must be at least 1, got 0."),
    ],
)
def test_bad_arguments(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert sentence in capsys.readouterr().err
