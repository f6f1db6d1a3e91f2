"""The cost of encoders: the report, the modes, and the arguments."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from eval.cost.best import best_sections, fastest, ratios
from eval.cost.encoders import dtypes_and_modes, main
from eval.cost.measurement import Cost, Result
from eval.cost.runtimes import Setting, build, runner
from sparse_vlm.encoder import EncoderOutput
from sparse_vlm.measure.towers import Tower, open_tower

DENSE = Tower("timm:dense", 224, 196, 768, gmacs=16.0, parameters=10)
OURS = Tower("sparseformer-x", 224, 48, 768, gmacs=4.0, parameters=10)


@pytest.mark.slow
def test_the_report_has_every_measurement(
    tmp_path: Path, tiny_variant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "cost.json"
    models = ["timm:vit_tiny_patch16_224@32", f"{tiny_variant}@32"]
    assert (
        main(
            [
                "--models",
                *models,
                "--batch_sizes",
                "1",
                "2",
                "--repeats",
                "3",
                "--dtypes",
                "float32",
                "--output",
                str(output),
            ]
        )
        == 0
    )
    report = json.loads(output.read_text())
    assert [(result["batch"], result["threads"]) for result in report["results"]] == [(1, 1), (2, 1)]
    for result in report["results"]:
        for row in result["towers"]:
            assert len(row["seconds"]) == 3
            assert row["median_seconds"] == sorted(row["seconds"])[1]
            assert row["images_per_second"] == pytest.approx(result["batch"] / row["median_seconds"])
            assert row["weight_bytes"] == 4 * row["tower"]["parameters"]
            assert row["share_of_matmul"] > 0
    one, two = ([row["peak_bytes"] for row in result["towers"]] for result in report["results"])
    assert all(single < double < 3 * single for single, double in zip(one, two, strict=True))
    assert "timm:vit_tiny_patch16_224" in output.with_suffix(".md").read_text()
    assert output.with_suffix(".png").stat().st_size > 1000
    assert "GMAC" in capsys.readouterr().out


@pytest.mark.slow
def test_an_encoder_directory_at_several_numbers_of_tokens(tmp_path: Path, encoder_dir: Path) -> None:
    output = tmp_path / "cost.json"
    models = ["timm:vit_tiny_patch16_224@32", str(encoder_dir)]
    assert main(["--models", *models, "--tokens", "2,6-7", "--repeats", "1", "--output", str(output)]) == 0
    towers = [row["tower"] for row in json.loads(output.read_text())["results"][0]["towers"]]
    assert [tower["tokens"] for tower in towers] == [4, 2, 6, 7], "a dense ViT keeps its own"
    gmacs = [tower["gmacs"] for tower in towers[1:]]
    assert gmacs == sorted(set(gmacs)), "more tokens cost more"
    assert f"{encoder_dir}@64, 7 tokens" in output.with_suffix(".md").read_text()


def test_ratios_and_shares_use_the_medians() -> None:
    costs = [Cost(DENSE, 0, 0, [9.0, 4.0, 1.0]), Cost(OURS, 0, 0, [2.0, 0.5, 0.1])]
    result = Result("x", Setting(1, 2, "float32", "eager"), costs, matmul_flops=32e9)
    assert ratios(result.costs) == ["sparseformer-x@224: 8.00× timm:dense@224"]
    assert result.share_of_matmul(costs[0]) == pytest.approx(2 * 16 * 2 / 4 / 32)


def measured(mode: str, dtype: str, dense: float, ours: float, batch: int = 1) -> Result:
    costs = [Cost(DENSE, 0, 0, [dense]), Cost(OURS, 0, 0, [ours])]
    return Result("x", Setting(1, batch, dtype, mode), costs, matmul_flops=1e9)


def test_the_first_table_compares_every_tower_in_its_own_fastest_mode() -> None:
    results = [
        measured("eager", "float32", dense=8.0, ours=3.0),
        measured("optimized", "float32", dense=9.0, ours=2.0),
        measured("compiled", "bfloat16", dense=6.0, ours=2.5),
        measured("onnx-int8", "float32", dense=1.0, ours=0.5),
        measured("training", "float32", dense=0.1, ours=0.1),
        measured("eager", "float32", dense=20.0, ours=10.0, batch=8),
    ]
    assert [(best.setting.mode, best.cost.median) for best in fastest(results[:3])] == [
        ("compiled", 6.0),
        ("optimized", 2.0),
    ]
    (section,) = best_sections(results)  # batch 8 has one mode alone, and nothing to choose
    assert section.title == "x: 1 thread, batch 1: best against best"
    assert [row[4] for row in section.rows[1:]] == ["compiled, bfloat16", "optimized, float32"]
    assert section.note == "sparseformer-x@224: 3.00× timm:dense@224"


def test_onnx_runtime_is_measured_in_float32_beside_other_dtypes() -> None:
    cpu = torch.device("cpu")
    pairs = dtypes_and_modes(["bfloat16", "float32"], ["eager", "onnx", "onnx-int8"], cpu)
    assert pairs == [("bfloat16", "eager"), ("float32", "eager"), ("float32", "onnx"), ("float32", "onnx-int8")]
    assert dtypes_and_modes(["auto"], ["onnx"], cpu) == [("float32", "onnx")]


def tokens_of(found: Any) -> torch.Tensor:
    """Get the tokens from ONNX Runtime's list of arrays, or from PyTorch's EncoderOutput or tensor."""
    found = found.tokens if isinstance(found, EncoderOutput) else found
    return torch.from_numpy(found[0]) if isinstance(found, list) else found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "dense", "tolerance"),
    [("optimized", False, 1e-5), ("compiled", False, 1e-5), ("onnx", False, 1e-5), ("onnx-int8", True, 0.1)],
)
def test_every_mode_computes_the_same_numbers(mode: str, dense: bool, tolerance: float, tiny_variant: str) -> None:
    tower = open_tower("timm:vit_tiny_patch16_224@64" if dense else tiny_variant)
    setting, cpu = Setting(1, 2, "float32", mode), torch.device("cpu")
    torch.manual_seed(0)
    plain = tower.build()
    torch.manual_seed(0)
    other = build(tower, "float32", mode, cpu)
    images = torch.randn(2, 3, 64, 64)
    expected = tokens_of(runner(plain, images, Setting(1, 2, "float32", "eager"))())
    found = tokens_of(runner(other, images, setting)())
    difference = (found - expected).norm() / expected.norm()
    assert difference < tolerance
    assert mode != "onnx-int8" or difference > 1e-4  # it was quantised


def test_training_gives_every_weight_a_gradient_and_clears_it(tiny_variant: str) -> None:
    tower = open_tower(tiny_variant)
    model = build(tower, "float32", "training", torch.device("cpu"))
    reached = set()
    for name, weight in model.named_parameters():
        weight.register_post_accumulate_grad_hook(lambda _, name=name: reached.add(name))
    runner(model, torch.randn(2, 3, 64, 64), Setting(1, 2, "float32", "training"))()
    assert reached == {name for name, _ in model.named_parameters()}
    assert all(weight.grad is None for weight in model.parameters())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--repeats", "0"], "--repeats must be at least 1, got 0."),
        (["--batch_sizes", "1", "0"], "--batch_sizes must be at least 1, got 0."),
        (["--output", "cost.txt"], "--output must end in .json, got cost.txt"),
        (["--modes", "eager", "onnx", "--dtypes", "bfloat16"], "--modes onnx takes float32 on the CPU"),
        (["--device", "cuda:99"], "There is no cuda:99"),
        (["--models", "sparseformer-clip-xl"], "Unknown encoder variant 'sparseformer-clip-xl'"),
        (["--tokens", "0"], "Token counts start at 1 and rise, got '0'"),
        (["--tokens", "nine"], "Token counts are written 16, 4-64 or 9,16,25, got 'nine'"),
        (["--models", "timm:vit_tiny_patch16_224", "--tokens", "4"], "The number of tokens of a dense ViT is fixed"),
        (["--models", "sparseformer-v1-t", "--tokens", "4"], "The 49 tokens of a SparseFormer v1 have an embedding"),
    ],
)
def test_bad_arguments(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert sentence in capsys.readouterr().err


def test_onnx_needs_its_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert main(["--modes", "eager", "onnx"]) == 2
    assert "ONNX export needs onnxscript: pip install 'sparse-vlm[export]'." in capsys.readouterr().err
