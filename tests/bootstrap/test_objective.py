"""The bootstrapping task: terms of the loss, a teacher that is neither trained nor saved, and training that aligns."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sparse_vlm.bootstrap import BootstrapTask, Teacher, bootstrap_from, open_teacher
from sparse_vlm.bootstrap.objective import GRID_LAYERS, LossWeights
from sparse_vlm.encoder import SparseFormer
from sparse_vlm.errors import UserError


def _task(clip_dir: Path, **options: Any) -> BootstrapTask:
    torch.manual_seed(0)
    teacher = open_teacher(str(clip_dir))
    student, _ = bootstrap_from(teacher, tokens=4, stem_channels=8, repeats=2)
    return BootstrapTask(student, teacher, **options)


def test_loss_is_one_minus_the_cosine(clip_dir: Path) -> None:
    task = _task(clip_dir).eval()
    images = torch.randn(3, 3, 32, 32)
    out = task(images)
    expected = F.cosine_similarity(task.student(images).pooled, task.teacher(images))
    assert torch.allclose(out["cosine"], expected, atol=1e-6)
    assert torch.allclose(out["loss"], 1 - expected.mean(), atol=1e-6)
    assert set(out) == {"loss", "alignment_loss", "cosine"}


def test_the_loss_is_the_weighted_sum_of_its_terms(clip_dir: Path) -> None:
    weights = LossWeights(alignment=0.5, token=2.0, feature=3.0, view=4.0)
    task = _task(clip_dir, weights=weights, second_view=open_teacher(str(clip_dir), image_size=48))
    images = torch.randn(3, 3, 48, 48)
    out = task(images)
    names = ("alignment", "token", "feature", "view")
    total = sum(getattr(weights, name) * out[f"{name}_loss"] for name in names)
    assert torch.allclose(out["loss"].detach(), total)
    assert not any(out[f"{name}_loss"].requires_grad for name in names)
    small = F.interpolate(images, (32, 32), mode="bicubic", antialias=True)
    pooled, target = task.student(small).pooled, task.teacher(small)
    assert torch.allclose(out["feature_loss"], F.smooth_l1_loss(pooled, target), atol=1e-6)
    assert torch.allclose(out["cosine"], F.cosine_similarity(pooled, target), atol=1e-5)
    other = open_teacher(str(clip_dir), image_size=48)(images)
    assert torch.allclose(out["view_loss"], (1 - F.cosine_similarity(pooled, other)).mean(), atol=1e-5)


def test_cosines_of_deviations_from_the_teachers_mean(clip_dir: Path) -> None:
    second = open_teacher(str(clip_dir), image_size=48)
    task = _task(clip_dir, weights=LossWeights(view=1.0), second_view=second, normalization="center").eval()
    images, typical = torch.randn(3, 3, 48, 48), torch.randn(5, 3, 32, 32)
    task.measure_targets(typical)
    out = task(images)
    small = F.interpolate(images, (32, 32), mode="bicubic", antialias=True)
    pooled, target, mean = task.student(small).pooled, task.teacher(small), task.teacher(typical).mean(0)
    other = open_teacher(str(clip_dir), image_size=48)(images)
    assert torch.allclose(out["cosine"], F.cosine_similarity(pooled, target), atol=1e-5)
    for name, wanted in (("alignment", target), ("view", other)):
        expected = 1 - F.cosine_similarity(pooled - mean, wanted - mean).mean()
        assert torch.allclose(out[f"{name}_loss"], expected, atol=1e-5)


def test_standardised_targets_weigh_every_channel(clip_dir: Path) -> None:
    weights = LossWeights(feature=0.1, entry=1.0)
    task = _task(clip_dir, weights=weights, normalization="standardize").eval()
    images, typical = torch.randn(3, 3, 32, 32), torch.randn(70, 3, 32, 32)  # more than one batch
    task.measure_targets(typical)
    out = task(images)
    deviation, mean = torch.std_mean(task.teacher(typical), 0, correction=0)
    own, wanted = (task.student(images).pooled - mean) / deviation, (task.teacher(images) - mean) / deviation
    assert torch.allclose(out["alignment_loss"], 1 - F.cosine_similarity(own, wanted).mean(), atol=1e-5)
    assert torch.allclose(out["feature_loss"], F.smooth_l1_loss(own, wanted), atol=1e-5)
    with task.teacher.recorded([-5]) as states:
        task.teacher(typical)
    patches = task.token_targets["-5"](states[-5][:, 1:]).flatten(0, 1)
    assert torch.allclose(patches.mean(0), torch.zeros(patches.shape[1]), atol=1e-4)
    assert torch.allclose(patches.std(0, correction=0), torch.ones(patches.shape[1]), atol=1e-4)


def test_a_checkpoint_holds_decoders_and_statistics_and_an_encoder_neither(clip_dir: Path, tmp_path: Path) -> None:
    task = _task(clip_dir, weights=LossWeights(grid=1.0), normalization="standardize")
    task.measure_targets(torch.randn(4, 3, 32, 32))
    saved = task.state_dict()
    assert torch.equal(saved["pooled_targets.mean"], task.pooled_targets.mean)
    assert not torch.equal(saved["token_targets.-1.deviation"], torch.ones(task.teacher.cortex.width))
    assert any(name.startswith("decoders.-2.") for name in saved)
    task.student.save_pretrained(tmp_path / "student")
    assert set(SparseFormer.from_pretrained(tmp_path / "student").state_dict()) == set(task.student.state_dict())


def test_the_grid_term_reaches_latent_tokens_before_and_behind_the_last_block(clip_dir: Path) -> None:
    """The other terms give the last block's latent tokens no gradient."""
    images = torch.randn(2, 3, 32, 32)
    task = _task(clip_dir, weights=LossWeights(grid=1.0))
    terms = task(images)
    assert set(terms) == {"loss", "alignment_loss", "grid_loss", "cosine"}
    output = task.student(images)
    _, patches = task._target_and_patches(images)
    for layer in GRID_LAYERS:
        output.hidden_states[layer].retain_grad()
    task._token_terms(output, patches)["grid"].backward()
    for layer in GRID_LAYERS:
        gradient = output.hidden_states[layer].grad
        assert gradient is not None
        assert gradient[:, 1:].abs().sum() > 0
    # Through the last block's attention, and through a decoder of their own.
    assert all(p.grad is not None for p in task.decoders.parameters())


def test_the_target_may_be_an_earlier_block(clip_dir: Path) -> None:
    """The student then has neither the blocks behind it nor the head."""
    whole, teacher = open_teacher(str(clip_dir)), open_teacher(str(clip_dir), layer=-2)
    images = torch.randn(2, 3, 32, 32)
    with whole.recorded([-2]) as states:
        whole(images)
    assert torch.allclose(teacher.tokens(images), states[-2])
    assert torch.allclose(teacher(images), whole.trunk.norm(states[-2])[:, 0], atol=1e-6)
    student, _ = bootstrap_from(teacher, tokens=4, stem_channels=8, repeats=2)
    assert student.config.cortex.depth == 3
    assert student.config.cortex.head_dim == 0
    assert student.config.teacher.endswith(", block 4")
    out = BootstrapTask(student, teacher)(images)
    assert torch.allclose(out["cosine"], F.cosine_similarity(student(images).pooled, teacher(images)), atol=1e-6)


def test_the_entry_term_compares_inputs_of_the_inherited_blocks(clip_dir: Path) -> None:
    """With one token per patch, and without a gradient through the inherited blocks."""
    task = _task(clip_dir, weights=LossWeights(alignment=0.0, entry=1.0)).eval()
    images = torch.randn(2, 3, 32, 32)
    out = task(images)
    output = task.student(images)
    rois = _one_token_under_each_patch(task.teacher).expand(2, -1, -1)
    with task.teacher.recorded([-5]) as states:
        task.teacher(images)
    patches = states[-5][:, 1:]
    assert task._token_loss(patches, rois, patches) < 1e-5
    again = task._token_loss(output.hidden_states[0][:, 1:], output.rois[-1], patches)
    assert torch.allclose(out["entry_loss"], again, atol=1e-6)
    out["loss"].backward()
    assert task.student.stem.conv.weight.grad is not None
    assert all(parameter.grad is None for parameter in task.student.cortex.trunk.parameters())


def _one_token_under_each_patch(teacher: Teacher) -> Tensor:
    """float32[1, 16, 4]: RoIs of different sizes around the centre of each patch of the 4 × 4 grid, row by row."""
    rows, columns = teacher.grid
    y, x = torch.meshgrid((torch.arange(rows) + 0.5) / rows, (torch.arange(columns) + 0.5) / columns, indexing="ij")
    center = torch.stack([x, y], dim=-1).flatten(0, 1)
    half = torch.linspace(0.05, 0.4, len(center)).unsqueeze(-1)
    return torch.cat([center - half, center + half], dim=-1)[None]


def test_the_token_term_compares_with_the_patch_at_the_centre_of_the_roi(clip_dir: Path) -> None:
    task = _task(clip_dir, weights=LossWeights(token=1.0))
    tokens = task.teacher.tokens(torch.randn(1, 3, 32, 32))[:, 1:]
    rois = _one_token_under_each_patch(task.teacher)
    assert task._token_loss(tokens, rois, tokens) < 1e-5
    assert task._token_loss(tokens.flip(1), rois, tokens) > 0.01
    # between two patches: their mean
    middle = (rois[:, :1] + rois[:, 1:2]) / 2
    assert task._token_loss((tokens[:, :1] + tokens[:, 1:2]) / 2, middle, tokens) < 1e-5


def test_the_token_term_gives_rois_no_gradient(clip_dir: Path) -> None:
    task = _task(clip_dir, weights=LossWeights(alignment=0.0, token=1.0))
    tokens = task.teacher.tokens(torch.randn(1, 3, 32, 32))[:, 1:]
    rois = _one_token_under_each_patch(task.teacher).requires_grad_()
    task._token_loss(tokens.clone().requires_grad_(), rois, tokens).backward()
    assert rois.grad is None


def test_one_pass_gives_tokens_and_target(clip_dir: Path) -> None:
    task = _task(clip_dir, weights=LossWeights(token=1.0))
    images = torch.randn(2, 3, 32, 32)
    target, patches = task._target_and_patches(images)
    assert torch.allclose(target, task.teacher(images), atol=1e-6)
    assert torch.equal(patches[-1], task.teacher.tokens(images)[:, 1:])


def test_the_teacher_computes_in_its_own_dtype(clip_dir: Path) -> None:
    images = torch.randn(2, 3, 32, 32)
    expected = _task(clip_dir).target(images)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(_task(clip_dir).target(images), expected)
    half = _task(clip_dir, teacher_dtype=torch.bfloat16)
    assert half.teacher.trunk.head.weight.dtype == torch.bfloat16
    assert half.student.cortex.trunk.head.weight.dtype == torch.float32
    found = half.target(images)
    assert found.dtype == torch.float32
    assert not torch.equal(found, expected)
    assert F.cosine_similarity(found, expected).min() > 0.999


def test_the_teacher_is_neither_saved_nor_trained(clip_dir: Path) -> None:
    weights = LossWeights(token=1.0, view=1.0)
    task = _task(clip_dir, weights=weights, second_view=open_teacher(str(clip_dir), image_size=48))
    assert all(name.startswith(("student.", "pooled_targets.", "token_targets.")) for name in task.state_dict())
    before = {name: value.clone() for name, value in task.teacher.state_dict().items()}
    task(torch.randn(2, 3, 48, 48))["loss"].backward()
    assert all(parameter.grad is None for parameter in task.teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in task.teacher.state_dict().items())


def test_checkpointing_gives_the_same_gradients(clip_dir: Path) -> None:
    images = torch.randn(2, 3, 32, 32)
    gradients = []
    for enabled in (False, True):
        task, calls = _task(clip_dir).train(), []
        if enabled:
            task.activation_checkpointing_enable()
        blocks = task.student.cortex.trunk.blocks
        for block in blocks:
            block.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        task(images)["loss"].backward()
        assert len(calls) == len(blocks) * (1 + enabled)  # recomputed in the backward pass
        gradients.append({name: p.grad for name, p in task.student.named_parameters() if p.requires_grad})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-5)


def test_the_image_size_is_that_of_the_larger_view(clip_dir: Path) -> None:
    assert _task(clip_dir).image_size == 32
    for size, expected in ((48, 48), (24, 32)):
        second = open_teacher(str(clip_dir), image_size=size)
        assert _task(clip_dir, weights=LossWeights(view=1.0), second_view=second).image_size == expected


def test_impossible_weights(clip_dir: Path) -> None:
    for values in ({"alignment": 0.0}, {"token": -1.0}):
        with pytest.raises(UserError, match="finite and not negative, and at least one must be positive"):
            LossWeights(**values)
    with pytest.raises(UserError, match="there is no second view"):
        _task(clip_dir, weights=LossWeights(view=1.0))
    with pytest.raises(UserError, match="weight is 0 and there is a second view"):
        _task(clip_dir, second_view=open_teacher(str(clip_dir)))


@pytest.mark.slow
def test_training_aligns_and_keeps_the_rois_apart(clip_dir: Path) -> None:
    task = _task(clip_dir)
    images = torch.randn(8, 3, 32, 32)
    optimizer = torch.optim.AdamW([p for p in task.parameters() if p.requires_grad], lr=2e-3)
    losses = []
    for _ in range(30):
        loss = task(images)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    rois = task.student(images).rois[-1]
    distances = torch.cdist(rois[0], rois[0]) + torch.eye(4)
    assert distances.min() > 0.01


@torch.no_grad()
def test_the_number_of_tokens_is_an_argument_of_a_step(clip_dir: Path) -> None:
    task = _task(clip_dir)
    images = torch.randn(2, 3, 32, 32)
    target = F.normalize(task.target(images), dim=-1)
    for tokens in (3, 6):
        pooled = F.normalize(task.student(images, tokens=tokens).pooled, dim=-1)
        torch.testing.assert_close(task(images, tokens)["cosine"], (pooled * target).sum(-1))
