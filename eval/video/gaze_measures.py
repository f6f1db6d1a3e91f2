"""What a gaze that follows is measured by: places of RoIs on clips, similarity of embeddings, accuracy, CPU time."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from eval.video.moving_shapes import Size, Split, make_clips
from sparse_vlm.bootstrap.teachers import Teacher
from sparse_vlm.bootstrap.zero_shot import hits
from sparse_vlm.encoder import EncoderOutput, SparseFormer
from sparse_vlm.encoder.rois import to_center_size
from sparse_vlm.encoder.runtime.following import Following, FollowingEncoder
from sparse_vlm.measure.timing import turns

TIMED_ROUNDS = 5


class Clips(NamedTuple):
    """Clips as an encoder sees them.

    Attributes:
        pixels: float32[N, T, 3, H, W].
        boxes: boxes around the shape, float32[N, T, 4].
        labels: its class, int64[N, T].
        teacher: the teacher's embeddings, float32[N, T, D].
    """

    pixels: Tensor
    boxes: Tensor
    labels: Tensor
    teacher: Tensor


@torch.inference_mode()
def open_clips(
    count: int, split: Split, size: Size, photographs: Path | None, encoder: SparseFormer, teacher: Teacher
) -> Clips:
    """Make clips, and embed their frames with the teacher."""
    clips = make_clips(count, split, size, photographs)
    pixels = torch.stack([torch.stack([encoder.transform(frame) for frame in clip.frames]) for clip in clips])
    embeddings = torch.stack([teacher(frames) for frames in pixels])
    boxes, labels = (torch.tensor([getattr(clip, name) for clip in clips]) for name in ("boxes", "labels"))
    return Clips(pixels, boxes, labels, embeddings)


@torch.inference_mode()
def compare(
    clips: Clips, encoder: SparseFormer, settings: Following, tokens: int | None, classes: Tensor | None
) -> dict[str, Tensor]:
    """Measure one setting: float32[N, T] by name of the measure.

    Args:
        clips: the clips.
        encoder: the encoder.
        settings: how the gaze follows.
        tokens: number of latent tokens; None for the encoder's own.
        classes: unit embeddings of the classes, float[K, D]; None to leave out "accuracy".
    """
    shape = clips.pixels.shape[:2]
    output: EncoderOutput = FollowingEncoder(encoder, settings, tokens)(clips.pixels)
    independent = encoder(clips.pixels.flatten(0, 1), tokens=tokens).pooled.unflatten(0, shape)
    pooled = output.pooled.unflatten(0, shape)
    measured = place_measures(output.rois[-1].unflatten(0, shape), clips.boxes)
    measured["cosine with independent"] = F.cosine_similarity(pooled, independent, dim=-1)
    measured["cosine with teacher"] = F.cosine_similarity(pooled, clips.teacher, dim=-1)
    if classes is not None:
        correct = hits(pooled.flatten(0, 1), classes, clips.labels.flatten())
        measured["accuracy"] = correct.float().unflatten(0, shape)
    return measured


def place_measures(rois: Tensor, boxes: Tensor) -> dict[str, Tensor]:
    """Where RoIs lie relative to a box.

    Args:
        rois: float32[…, n, 4].
        boxes: float32[…, 4].

    Returns:
        float32[…] each: "on shape", the share of the RoIs' centers inside the box; "distance", their mean distance from
        its center in sides of the image; "outside", the share outside the image; "size", the median of the RoIs' sides.
    """
    center, size = to_center_size(rois)
    low, high = boxes[..., None, :2], boxes[..., None, 2:]
    on = ((low <= center) & (center <= high)).all(-1)
    outside = ((center < 0) | (center > 1)).any(-1)
    return {
        "on shape": on.float().mean(-1),
        "distance": (center - (low + high) / 2).norm(dim=-1).mean(-1),
        "outside": outside.float().mean(-1),
        "size": size.abs().mean(-1).median(-1).values,
    }


@torch.inference_mode()
def compare_frames(
    frames: Tensor, encoder: SparseFormer, teacher: Teacher, settings: Following, tokens: int | None
) -> dict[str, Tensor]:
    """Measure one setting on a clip without known places, float32[T, 3, H, W]: float32[T] by name of the measure."""
    output: EncoderOutput = FollowingEncoder(encoder, settings, tokens)(frames[None])
    size = to_center_size(output.rois[-1])[1]
    return {
        "cosine with independent": F.cosine_similarity(output.pooled, encoder(frames, tokens=tokens).pooled, dim=-1),
        "cosine with teacher": F.cosine_similarity(output.pooled, teacher(frames), dim=-1),
        "size": size.abs().mean(-1).median(-1).values,
    }


@torch.inference_mode()
def seconds_per_frame(
    frames: Tensor, encoder: SparseFormer, settings: Sequence[Following], tokens: int | None
) -> list[float]:
    """CPU seconds per frame of each setting, where frames float32[T, 3, H, W] come one by one; they take turns.

    Returns:
        The shortest of several rounds; the first frame is left out.
    """
    best = [float("inf")] * len(settings)
    for _, index in turns(len(settings), TIMED_ROUNDS):
        follower = FollowingEncoder(encoder, settings[index], tokens)
        follower(frames[None, :1])
        start = time.process_time()
        for frame in frames[1:]:
            follower(frame[None, None])
        best[index] = min(best[index], (time.process_time() - start) / (len(frames) - 1))
    return best
