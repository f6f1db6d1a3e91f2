"""Batches of each kind and the measurements, with a model on a fake GPU."""

from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException

from sparse_vlm.bootstrap import BootstrapTask, bootstrap_from, open_teacher
from sparse_vlm.data.conversations.encoding import IGNORE
from tests.fake_gpu import assert_on_gpu, fake_gpu
from tests.train.language.test_visual_cache import data
from train.language.vlm import ModelArguments, load
from train.stages.stage import StageArguments
from train.vision.monitor import measure_alignment, measure_zero_shot


@pytest.mark.slow
@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("options", [{}, {"packing": True}, {"independent_turns": True}])
def test_a_batch(
    vlm_dir: Path,
    data_dir: Path,
    tmp_path: Path,
    options: dict[str, bool],
    cached: bool,
) -> None:
    args = StageArguments(output_dir=str(tmp_path / "out"), use_cpu=True, bf16=False)
    model, processor = load(ModelArguments(str(vlm_dir)), args)
    made = data((model, processor), data_dir, "chats.json", tmp_path / "cache" if cached else None, **options)
    batch = made.collator([made.training[index] for index in range(4)])
    predicting = batch.pop("logits_to_keep")  # counting a mask would have to wait for the GPU
    batch["shift_labels"] = torch.full(predicting.shape, IGNORE).masked_scatter(predicting, batch["labels"])
    with fake_gpu() as gpu:
        gpu.move(model, torch.bfloat16)
        on_gpu = {name: value.to("cuda") if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
        out = model(**on_gpu)
        assert_on_gpu(out.loss, out.logits)


@pytest.mark.slow
def test_the_monitors(clip_dir: Path) -> None:
    """Up to where values move to the CPU, which a fake GPU does not have."""
    teacher = open_teacher(str(clip_dir))
    student, _ = bootstrap_from(teacher, tokens=4, stem_channels=8, repeats=2)
    task, classes = BootstrapTask(student.eval(), teacher), torch.randn(5, 24)
    gathered: list[torch.Tensor] = []

    def gather(tensor: torch.Tensor) -> torch.Tensor:
        gathered.append(tensor)
        return tensor

    with fake_gpu() as gpu:
        gpu.move(task)
        gpu.move(teacher)
        batch = {
            "pixel_values": torch.randn(3, 3, 32, 32, device="cuda"),
            "labels": torch.zeros(3, dtype=torch.long, device="cuda"),
            "readable": torch.ones(3, dtype=torch.bool, device="cuda"),
        }
        with pytest.raises(DataDependentOutputException):
            measure_alignment(task, student, [batch], gather)
        with pytest.raises(DataDependentOutputException):
            measure_zero_shot(lambda images: student(images).pooled, classes, [batch], gather)
        assert_on_gpu(gathered)
    assert [len(tensor) for tensor in gathered] == [3] * 6, "readable, pooled, target, RoIs; readable, hits"
