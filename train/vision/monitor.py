"""Measurements during bootstrapping: alignment with the teacher, RoIs, zero-shot accuracy.

Functions of a data loader. The trainer decides when to call them and where the results go.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sparse_vlm.bootstrap import BootstrapTask, Teacher
from sparse_vlm.bootstrap.roi_statistics import RoIStatistics, roi_numbers, roi_statistics
from sparse_vlm.bootstrap.similarity import centered_cosine, mean_cosine
from sparse_vlm.bootstrap.zero_shot import class_embeddings, hits, imagenet_prompts, read_class_names
from sparse_vlm.data.images.labels import LabelledImages, read_class_folders
from sparse_vlm.data.images.sets import HeldOutImages
from sparse_vlm.encoder import SparseFormer
from sparse_vlm.encoder.preprocessing import Transform
from sparse_vlm.errors import UserError

Batches = Iterable[Mapping[str, Tensor]]


@dataclass(frozen=True)
class Alignment:
    """Alignment of a student with its teacher over held-out images.

    Attributes:
        cosine: mean cosine of the student's final representation with the teacher's.
        centered_cosine: mean cosine of their deviations from their own means over these images. It is 0 for a student
            with a constant output, whose `cosine` may be high.
        rois: statistics of the RoIs that the last unit samples.
        images: number of images.
        unreadable: number of unreadable images, which are excluded.
        cosine_by_tokens: `cosine` with other numbers of latent tokens.
    """

    cosine: float
    centered_cosine: float
    rois: RoIStatistics
    images: int
    unreadable: int
    cosine_by_tokens: dict[int, float]


@torch.no_grad()
def measure_alignment(
    task: BootstrapTask,
    student: SparseFormer,
    batches: Batches,
    gather: Callable[[Tensor], Tensor],
    counts: Sequence[int] = (),
) -> Alignment:
    """Compare the student with the teacher on held-out images.

    Args:
        task: holds the teacher.
        student: the task's student or its moving average, in eval mode.
        batches: "pixel_values" float[B, 3, H, W] and "readable" bool[B], on the student's device.
        gather: concatenates the tensors of all processes along the batch.
        counts: numbers of latent tokens to measure besides the student's own.

    Raises:
        UserError: there are no images, or none is readable.
    """

    def measured(batch: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        images = batch["pixel_values"]
        output = student(images)
        others = [student(images, tokens=count).pooled.float() for count in counts]
        return output.pooled.float(), task.target(images), roi_numbers(output.rois[-1]), *others

    (pooled, target, rois, *others), unreadable = _over_readable(measured, batches, gather, "--eval_data_path")
    cosines = mean_cosine(pooled, target), centered_cosine(pooled, target)
    by_tokens = {count: mean_cosine(other, target) for count, other in zip(counts, others, strict=True)}
    return Alignment(*cosines, roi_statistics(rois), len(rois), unreadable, by_tokens)


def _over_readable(
    measured: Callable[[Mapping[str, Tensor]], tuple[Tensor, ...]],
    batches: Batches,
    gather: Callable[[Tensor], Tensor],
    flag: str,
) -> tuple[list[Tensor], int]:
    """Return the measured tensors of all readable images, on the CPU, and the number of unreadable images."""
    rows = [[gather(tensor).cpu() for tensor in (batch["readable"], *measured(batch))] for batch in batches]
    if not rows:
        raise UserError(f"The held-out data ({flag}) holds no images.")
    readable, *tensors = (torch.cat(parts) for parts in zip(*rows, strict=True))
    if not readable.any():
        raise UserError(f"None of the {len(readable)} held-out images ({flag}) can be read.")
    return [tensor[readable] for tensor in tensors], int((~readable).sum())


@dataclass(frozen=True)
class ZeroShotTask:
    """Labelled images and the teacher's embeddings of their classes.

    Attributes:
        images: the labelled images.
        classes: unit embeddings, float32[K, D] on the CPU.
    """

    images: HeldOutImages
    classes: Tensor


def open_zero_shot_task(
    teacher: Teacher,
    folder: str | Path,
    class_names: str | Path | None,
    *,
    on_bad_image: str = "error",
    device: torch.device | str = "cpu",
) -> ZeroShotTask:
    """Open a folder of labelled images for zero-shot classification with open_clip's ImageNet templates.

    Args:
        teacher: a teacher with a text side.
        folder: one subfolder per class.
        class_names: file with one name per line, in the order of the sorted subfolders; None: ImageNet-1k's names.
        on_bad_image: "error" or "skip".
        device: where the text side embeds the names (80,000 captions for ImageNet), before it returns to the CPU.

    Raises:
        UserError: the teacher has no text side, or the numbers of names and folders differ.
    """
    if teacher.text is None:
        raise UserError(f"Zero-shot classification needs a teacher with a text side (open_clip:…), not {teacher.name}.")
    images = LabelledImages(read_class_folders(folder), Transform(teacher.preprocessing), on_bad_image=on_bad_image)
    folders = len(images.labels.classes)
    names, templates = imagenet_prompts(None if class_names is None else read_class_names(class_names))
    if len(names) != folders:
        whose = "ImageNet-1k" if class_names is None else str(class_names)
        raise UserError(
            f"{folder} has {folders} class folders, but {whose} has {len(names)} names. "
            "Give --class_names a file with one name per folder, in their sorted order."
        )
    classes = class_embeddings(teacher.text.to(device), names, templates).cpu()
    teacher.text.cpu()
    return ZeroShotTask(HeldOutImages(images), classes)


@dataclass(frozen=True)
class ZeroShotAccuracy:
    """Zero-shot accuracy over labelled images.

    Attributes:
        value: share of the images whose nearest class embedding is that of their label.
        images: number of images.
        unreadable: number of unreadable images, which are excluded.
    """

    value: float
    images: int
    unreadable: int


@torch.no_grad()
def measure_zero_shot(
    encode: Callable[[Tensor], Tensor], classes: Tensor, batches: Batches, gather: Callable[[Tensor], Tensor]
) -> ZeroShotAccuracy:
    """Classify labelled images by the nearest class embedding.

    Args:
        encode: float[B, 3, H, W] -> float[B, D].
        classes: float32[K, D].
        batches: "pixel_values", "labels" int64[B] and "readable" bool[B].
        gather: as in `measure_alignment`.

    Raises:
        UserError: there are no images, or none is readable.
    """

    def measured(batch: Mapping[str, Tensor]) -> tuple[Tensor]:
        images = batch["pixel_values"]
        return (hits(encode(images), classes.to(images.device), batch["labels"]).float(),)

    (right,), unreadable = _over_readable(measured, batches, gather, "--zero_shot_data_path")
    return ZeroShotAccuracy(right.mean().item(), len(right), unreadable)
