"""The encoder of clips: equality with its image encoder on clips that stand still, and what time adds."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sparse_vlm.encoder import SparseFormer, SparseFormerConfig
from sparse_vlm.encoder.float32 import Float32Module
from sparse_vlm.encoder.focusing import RoIAdjustment, SamplingPoints
from sparse_vlm.encoder.rois import lay_out_clip_rois, lay_out_rois, over_time
from sparse_vlm.encoder.runtime.inference import optimize_for_inference
from sparse_vlm.encoder.runtime.sampling_steps import record_sampling_steps
from sparse_vlm.encoder.video.clips import FRAMES_AT_ONCE, VideoSparseFormer
from sparse_vlm.errors import UserError
from tests.encoder.parity.official import NAMES, TOLERANCES, load_official, recorded


def still(images: Tensor, frames: int) -> Tensor:
    """float[B, 3, H, W] -> clips float[B, frames, 3, H, W] of equal frames."""
    return images.unsqueeze(1).expand(-1, frames, -1, -1, -1)


def space(rois: Tensor) -> Tensor:
    """(x1, y1, t1, x2, y2, t2) -> (x1, y1, x2, y2)"""
    return rois[..., [0, 1, 3, 4]]


@pytest.fixture
def inflated(moving_encoder: SparseFormer) -> VideoSparseFormer:
    return VideoSparseFormer.from_image_encoder(moving_encoder)


@pytest.fixture
def clips() -> Tensor:
    return torch.randn(2, 4, 3, 32, 48, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("frames", [1, 2, 5])
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_still_clip_is_the_image(name: str, frames: int) -> None:
    """Within the tolerances of the parity with the authors' library, for their weights of both generations."""
    encoder, images = load_official(name), recorded(name, "b")["input"]
    expected, found = encoder(images), VideoSparseFormer.from_image_encoder(encoder)(still(images, frames))
    tolerance = {"rtol": 0, "atol": TOLERANCES["output"]}
    torch.testing.assert_close(found.pooled, expected.pooled, **tolerance)
    torch.testing.assert_close(space(found.rois), expected.rois, rtol=0, atol=TOLERANCES["roi"])
    for state, other in zip(found.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(state, other, rtol=0, atol=TOLERANCES["tokens"])
    assert torch.equal(found.rois[..., 2::3], torch.tensor([0.0, 1.0]).expand_as(found.rois[..., 2::3]))


@pytest.mark.parametrize("frames", [1, 3, FRAMES_AT_ONCE + 1])
@torch.no_grad()
def test_a_still_clip_is_the_image_for_any_rois(moving_encoder: SparseFormer, frames: int) -> None:
    """Also for mirrored RoIs, and for those that leave the image or the clip."""
    generator = torch.Generator().manual_seed(2)
    images, rois = torch.randn(2, 3, 40, 64, generator=generator), torch.randn(2, 7, 6, generator=generator)
    expected = moving_encoder(images, space(rois))
    found = VideoSparseFormer.from_image_encoder(moving_encoder)(still(images, frames), rois)
    torch.testing.assert_close(found.tokens, expected.tokens, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.pooled, expected.pooled, rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(space(found.rois), expected.rois, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_spans_repeat_the_tokens(moving_encoder: SparseFormer) -> None:
    images = torch.randn(2, 3, 40, 64, generator=torch.Generator().manual_seed(2))
    inflated = VideoSparseFormer.from_image_encoder(moving_encoder, spans=3)
    assert inflated.config.focus.tokens == 18
    learned = moving_encoder.focus.initial_rois.weight
    expected, found = moving_encoder(images, learned.repeat(3, 1)), inflated(still(images, 4))
    torch.testing.assert_close(found.pooled, expected.pooled, rtol=1e-4, atol=2e-5)
    times = inflated.focus.initial_rois.weight.unflatten(0, (3, 6))[:, 0, 2::3]
    torch.testing.assert_close(times, torch.tensor([[0, 1 / 3], [1 / 3, 2 / 3], [2 / 3, 1]]))


@torch.no_grad()
def test_spans_of_v1_repeat_its_embeddings() -> None:
    """Its embedding is the mean over tokens, so that it is the same with every token three times."""
    encoder, images = load_official("v1_tiny"), recorded("v1_tiny", "a")["input"]
    expected, found = encoder(images), VideoSparseFormer.from_image_encoder(encoder, spans=3)(still(images, 4))
    torch.testing.assert_close(found.pooled, expected.pooled, rtol=0, atol=TOLERANCES["output"])
    torch.testing.assert_close(found.tokens, expected.tokens.repeat(1, 3, 1), rtol=0, atol=TOLERANCES["tokens"])


@torch.no_grad()
def test_the_order_of_the_frames_matters(inflated: VideoSparseFormer, clips: Tensor) -> None:
    assert (inflated(clips).pooled - inflated(clips.flip(1)).pooled).abs().max() > 1e-3


@torch.no_grad()
def test_a_token_samples_in_its_span_of_time(inflated: VideoSparseFormer, clips: Tensor) -> None:
    """Points of the first half of the time do not reach the frames of the second half, nor the reverse."""
    rois = lay_out_clip_rois(8, spans=2)
    times = record_sampling_steps(inflated, clips, rois)[0].points[..., 2]
    assert times[:, :4].max() < 0.6
    assert times[:, 4:].min() > 0.4
    for token in times.flatten(0, 1):
        assert len(token.unique()) == len(token)  # no two points of a token at one time
        assert token.max() - token.min() > 0.4


@torch.no_grad()
def test_a_smooth_clip_looks_the_same_at_any_frame_rate(inflated: VideoSparseFormer) -> None:
    """Twice as many frames of a slow change are nearly the same clip: times are shares of the clip, not frames."""
    start, end = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    outputs = []
    for frames in (16, 32):
        time = ((torch.arange(frames) + 0.5) / frames)[:, None, None, None]
        outputs.append(inflated((start + 0.1 * time * (end - start))[None]).pooled)
    torch.testing.assert_close(*outputs, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_reaches_every_weight(name: str) -> None:
    """Only the LN in front of the zero Linear of the times has to wait for the second step."""
    inflated = VideoSparseFormer.from_image_encoder(load_official(name))
    optimizer = torch.optim.SGD(inflated.parameters(), lr=1e-3)
    clips = recorded(name, "a")["input"].unsqueeze(1) * torch.linspace(1, -1, 4).view(1, 4, 1, 1, 1)
    waiting = []
    for _ in range(2):
        optimizer.zero_grad()
        inflated(clips).pooled.square().sum().backward()
        gradients = {key: weight.grad for key, weight in inflated.named_parameters()}
        assert all(grad is not None and grad.isfinite().all() for grad in gradients.values())
        waiting.append({key for key, grad in gradients.items() if grad is not None and not grad.any()})
        for module in inflated.modules():
            if isinstance(module, SamplingPoints | RoIAdjustment):
                grad = module.linear.weight.grad
                assert grad is not None
                assert grad.unflatten(0, (-1, 3))[:, 2].any()  # the rows of time
        optimizer.step()
    assert waiting == [{key for key in gradients if ".time.norm." in key}, set()]


def test_a_small_step_moves_the_times_a_little(inflated: VideoSparseFormer, clips: Tensor) -> None:
    """Equal offsets in time would be thrown all over the span, because their spread is normalised."""
    before = [step.points[..., 2] for step in record_sampling_steps(inflated, clips)]
    optimizer = torch.optim.AdamW(inflated.parameters(), lr=1e-5)
    inflated(clips).pooled.square().sum().backward()
    optimizer.step()
    after = [step.points[..., 2] for step in record_sampling_steps(inflated, clips)]
    assert max((a - b).abs().max().item() for a, b in zip(after, before, strict=True)) < 1e-2


@torch.no_grad()
def test_numbers_of_tokens_and_hidden_states(inflated: VideoSparseFormer, clips: Tensor) -> None:
    output = inflated(clips, tokens=5)
    assert output.rois.shape == (2, 2, 5, 6)
    torch.testing.assert_close(inflated(clips, over_time(lay_out_rois(5))).pooled, output.pooled)
    for state, other in zip(inflated.hidden_states(clips, [0, -1], tokens=5), output.hidden_states[::2], strict=True):
        torch.testing.assert_close(state, other)


@pytest.mark.parametrize("frames", [1, 9])
@torch.no_grad()
def test_a_directory_keeps_everything(
    tiny_config: SparseFormerConfig, clips: Tensor, tmp_path: Path, frames: int
) -> None:
    torch.manual_seed(0)
    encoder = VideoSparseFormer(replace(tiny_config, trained_tokens="1-9")).eval()
    encoder.save_pretrained(tmp_path / "video")
    loaded = VideoSparseFormer.from_pretrained(tmp_path / "video")
    assert loaded.config == encoder.config
    clips = clips[:, :1].expand(-1, frames, -1, -1, -1)
    assert torch.equal(loaded(clips).pooled, encoder(clips).pooled)


def test_directories_of_images_and_clips_are_not_confused(inflated: VideoSparseFormer, tmp_path: Path) -> None:
    inflated.save_pretrained(tmp_path / "video")
    with pytest.raises(UserError, match=r"video contains a model of type 'video_sparseformer', not a SparseFormer"):
        SparseFormer.from_pretrained(tmp_path / "video")
    SparseFormer(inflated.config).save_pretrained(tmp_path / "image")
    with pytest.raises(UserError, match=r"type 'sparseformer', not one of type 'video_sparseformer'"):
        VideoSparseFormer.from_pretrained(tmp_path / "image")


@torch.no_grad()
def test_coordinates_stay_float32_in_bfloat16(inflated: VideoSparseFormer, clips: Tensor) -> None:
    expected = inflated(clips)
    half = inflated.to(torch.bfloat16)
    parts = [module for module in half.modules() if isinstance(module, Float32Module)]
    assert {weight.dtype for part in parts for weight in part.parameters()} == {torch.float32}
    found = half(clips.bfloat16())
    assert found.rois.dtype == torch.float32
    assert (found.rois - expected.rois).abs().max() < 0.05
    assert torch.cosine_similarity(found.pooled.float(), expected.pooled).min() > 0.99


@torch.no_grad()
def test_an_encoder_in_another_dtype_is_inflated(tiny_encoder: SparseFormer, clips: Tensor) -> None:
    inflated = VideoSparseFormer.from_image_encoder(tiny_encoder.to(torch.bfloat16))
    assert {weight.dtype for weight in inflated.parameters()} == {torch.float32}
    assert inflated(clips).pooled.isfinite().all()


def test_the_image_encoder_is_left_alone(moving_encoder: SparseFormer) -> None:
    before = {key: value.clone() for key, value in moving_encoder.state_dict().items()}
    inflated = VideoSparseFormer.from_image_encoder(moving_encoder, spans=2)
    with torch.no_grad():
        for weight in inflated.parameters():
            weight.add_(1)
    assert all(torch.equal(value, before[key]) for key, value in moving_encoder.state_dict().items())


@pytest.mark.parametrize("spans", [0, -2])
def test_a_clip_without_a_span_is_refused(tiny_encoder: SparseFormer, spans: int) -> None:
    with pytest.raises(UserError, match=f"at least 1 span of time, got {spans}"):
        VideoSparseFormer.from_image_encoder(tiny_encoder, spans)


@pytest.mark.parametrize(
    ("clips", "got"),
    [
        (torch.rand(2, 3, 32, 32), r"float32\[2, 3, 32, 32\]"),
        (torch.rand(2, 3, 4, 32, 32), r"float32\[2, 3, 4, 32, 32\]"),
        (torch.rand(2, 0, 3, 32, 32), r"float32\[2, 0, 3, 32, 32\]"),
        (torch.zeros(1, 2, 3, 8, 8, dtype=torch.uint8), r"uint8\[1, 2, 3, 8, 8\]"),
    ],
)
def test_other_shapes_are_refused(inflated: VideoSparseFormer, clips: Tensor, got: str) -> None:
    with pytest.raises(UserError, match=rf"RGB clips, float\[B, T, 3, H, W\], got {got}"):
        inflated(clips)


@pytest.mark.parametrize(
    ("rois", "sentence"),
    [
        (lay_out_rois(4), r"RoIs are float\[n, 6\] or, for 2 clips, float\[2, n, 6\] with n ≥ 1, got \[4, 4\]"),
        (over_time(lay_out_rois(4), 0.5, 0.5), "a width, a height and a duration, but some are zero"),
        (over_time(lay_out_rois(4)).long(), "floating-point clip coordinates, got int64"),
    ],
)
def test_bad_rois_are_refused(inflated: VideoSparseFormer, clips: Tensor, rois: Tensor, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        inflated(clips, rois)


def test_v1_refuses_other_numbers_of_tokens(clips: Tensor) -> None:
    with pytest.raises(UserError, match="is a SparseFormer v1, whose 7 tokens have an embedding each"):
        VideoSparseFormer.from_image_encoder(load_official("v1_tiny"))(clips, tokens=9)


def test_it_learns_what_the_mean_over_frames_cannot_tell(tiny_encoder: SparseFormer) -> None:
    """A bright square that moves along x or y, and each clip in reverse."""
    clips = torch.full((4, 4, 3, 32, 32), -1.0)
    for frame in range(4):
        place = slice(4 + 6 * frame, 10 + 6 * frame)
        clips[0, frame, :, 12:18, place] = clips[2, frame, :, place, 12:18] = 2.0
    clips[1], clips[3] = clips[0].flip(0), clips[2].flip(0)
    assert torch.equal(clips[0].mean(0), clips[1].mean(0))
    inflated, directions = VideoSparseFormer.from_image_encoder(tiny_encoder), torch.arange(4)
    optimizer = torch.optim.AdamW(inflated.parameters(), lr=5e-4)
    for _ in range(30):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(inflated(clips).pooled, directions).backward()
        optimizer.step()
    assert inflated(clips).pooled.argmax(-1).tolist() == [0, 1, 2, 3]


@torch.no_grad()
def test_packed_for_inference(inflated: VideoSparseFormer, clips: Tensor) -> None:
    expected = inflated(clips).pooled
    optimize_for_inference(inflated)
    torch.testing.assert_close(inflated(clips).pooled, expected, rtol=1e-4, atol=1e-5)
