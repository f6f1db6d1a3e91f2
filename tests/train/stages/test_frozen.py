"""Frozen weights in bf16: which are cast, equal losses, and the result."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from sparse_vlm.encoder.float32 import Float32Module
from sparse_vlm.vlm.build import build_vlm
from sparse_vlm.vlm.loading import load_vlm
from tests.train.language.test_align import changed, flags, losses
from tests.train.language.test_instruct import LORA, QLORA
from tests.train.launch import forked
from train import align, instruct
from train.stages.arguments import StageArguments
from train.stages.frozen import cast_frozen, weight_bytes

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def bf16_dir(encoder_dir: Path, llm_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the VLM of `vlm_dir` in bfloat16."""
    directory = tmp_path_factory.mktemp("bf16") / "vlm"
    build_vlm(encoder_dir, llm_dir, directory, dtype="bfloat16")
    return directory


def train_in_bf16(stage: str, start: Path, data_dir: Path, out: Path, **options: object) -> list[float]:
    """Run a stage and return its losses."""
    main = {"align": align.main, "instruct": instruct.main}[stage]
    options = {"data_path": data_dir / "chats.json", "learning_rate": 1e-3, "bf16": True, **options}
    assert main(flags(start, data_dir, out, **options)) == 0
    return losses(out)


def dtypes_of(directory: Path) -> dict[str, torch.dtype]:
    return {name: weight.dtype for name, weight in load_file(directory / "model.safetensors").items()}


def test_only_frozen_matrices_are_cast_to_bf16(vlm_dir: Path, tmp_path: Path) -> None:
    model, _ = load_vlm(vlm_dir)
    model.requires_grad_(requires_grad=False)
    model.model.multi_modal_projector.requires_grad_(requires_grad=True)
    before = weight_bytes(model)
    cast_frozen(model, StageArguments(output_dir=str(tmp_path), use_cpu=True, bf16=False))
    assert weight_bytes(model) == before, "the stage computes in float32"
    cast_frozen(model, StageArguments(output_dir=str(tmp_path), use_cpu=True, bf16=True))
    held = weight_bytes(model)
    assert held["float32"] + 2 * held["bfloat16"] == before["float32"]
    assert {p.dtype for p in model.model.multi_modal_projector.parameters()} == {torch.float32}
    for module in model.modules():
        if isinstance(module, Float32Module):
            assert {p.dtype for p in module.parameters()} <= {torch.float32}
    language: nn.Module = model.model.language_model
    assert {p.dtype for p in language.parameters() if p.ndim > 1} == {torch.bfloat16}
    assert {p.dtype for p in language.parameters() if p.ndim == 1} == {torch.float32}, "norms"
    assert model.lm_head.weight is model.get_input_embeddings().weight, "tied"
    assert model.get_input_embeddings()(torch.tensor([[1]])).dtype == torch.float32


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "options"), [("align", {}), ("align", {"word_start": 6}), ("instruct", LORA)])
def test_losses_equal_those_of_autocast_over_float32(
    bf16_dir: Path,
    data_dir: Path,
    tmp_path: Path,
    stage: str,
    options: dict[str, object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held = train_in_bf16(stage, bf16_dir, data_dir, tmp_path / "held", **options)
    assert changed(bf16_dir, tmp_path / "held") >= {"multi_modal_projector"}
    monkeypatch.setattr("train.language.vlm.cast_frozen", lambda model, args: None)
    assert train_in_bf16(stage, bf16_dir, data_dir, tmp_path / "converted", **options) == held


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, LORA, QLORA, {"tune_focusing": True}])
def test_a_result_keeps_the_dtype_and_the_frozen_weights_of_the_start(
    vlm_dir: Path, bf16_dir: Path, data_dir: Path, tmp_path: Path, options: dict[str, object]
) -> None:
    for start in (vlm_dir, bf16_dir):
        out = tmp_path / start.parent.name
        train_in_bf16("instruct", start, data_dir, out, max_steps=2, **options)
        assert dtypes_of(out) == dtypes_of(start)
        old, new = (load_file(folder / "model.safetensors") for folder in (start, out))
        frozen = [name for name in old if ".vision_tower." in name and ".cortex." in name]
        assert all(torch.equal(old[name], new[name]) for name in frozen)
        load_vlm(out)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "options"), [("align", {}), ("instruct", LORA)])
def test_the_dtype_of_the_result_can_be_chosen(
    vlm_dir: Path, data_dir: Path, tmp_path: Path, stage: str, options: dict[str, object]
) -> None:
    train_in_bf16(stage, vlm_dir, data_dir, tmp_path / "out", max_steps=2, output_dtype="bfloat16", **options)
    dtypes = dtypes_of(tmp_path / "out")
    assert {kind for name, kind in dtypes.items() if ".vision_tower." not in name} == {torch.bfloat16}
    assert load_vlm(tmp_path / "out")[0].config.dtype == torch.float32, "what load_vlm was asked for"


def test_an_unknown_dtype_is_a_one_line_error(
    vlm_dir: Path, data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert align.main(flags(vlm_dir, data_dir, tmp_path / "out", output_dtype="bf16")) == 2
    assert "Unknown --output_dtype 'bf16'. Did you mean 'bfloat16'" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, LORA])
def test_a_bf16_run_resumes_with_the_same_curve(
    vlm_dir: Path, data_dir: Path, tmp_path: Path, options: dict[str, object]
) -> None:
    stage = "instruct" if options else "align"
    options = {**options, "save_steps": 2, "save_total_limit": 9, "keep_checkpoints": True}
    whole = train_in_bf16(stage, vlm_dir, data_dir, tmp_path / "whole", **options)
    (tmp_path / "halves").mkdir()
    shutil.copytree(tmp_path / "whole" / "checkpoint-4", tmp_path / "halves" / "checkpoint-4")
    shutil.copy(tmp_path / "whole" / "log.jsonl", tmp_path / "halves")
    assert train_in_bf16(stage, vlm_dir, data_dir, tmp_path / "halves", **options) == whole
    assert changed(tmp_path / "whole", tmp_path / "halves") == set()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "config", "options"),
    [("align", "zero3_offload", {}), ("instruct", "zero3", LORA), ("instruct", "zero2", QLORA)],
)
def test_two_processes_with_deepspeed_follow_one_process(
    bf16_dir: Path,
    data_dir: Path,
    tmp_path: Path,
    stage: str,
    config: str,
    options: dict[str, object],
) -> None:
    """Mixed dtypes under DeepSpeed. Sums of bf16 products have another order: 1e-2 of a loss of about 10."""
    common = {"train_sampling_strategy": "sequential", "max_steps": 5, **options}
    if stage == "instruct":
        common["lora_dropout"] = 0.0
    one = train_in_bf16(stage, bf16_dir, data_dir, tmp_path / "one", per_device_train_batch_size=2, **common)
    more = {"data_path": data_dir / "chats.json", "learning_rate": 1e-3, "bf16": True, **common}
    more |= {
        "per_device_train_batch_size": 1,
        "deepspeed": f"train/configs/deepspeed/{config}.json",
        "num_processes": 2,
    }
    forked(f"train.{stage}", flags(bf16_dir, data_dir, tmp_path / "two", **more))
    assert losses(tmp_path / "two") == pytest.approx(one, abs=1e-2)
    assert changed(bf16_dir, tmp_path / "two") == changed(bf16_dir, tmp_path / "one")
    assert dtypes_of(tmp_path / "two") == dtypes_of(bf16_dir)
