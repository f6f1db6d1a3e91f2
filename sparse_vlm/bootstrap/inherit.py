"""Inheritance: which blocks of a teacher a SparseFormer drops, tunes and freezes, with a report on every weight."""

from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparse_vlm.bootstrap.teachers import Teacher
from sparse_vlm.encoder import FocusConfig, SparseFormer, SparseFormerConfig, StemConfig
from sparse_vlm.encoder.checkpoints import load_directory, load_strictly
from sparse_vlm.encoder.token_counts import TokenCounts
from sparse_vlm.errors import UserError

FROZEN, TUNED, NEW, DROPPED = "copied and frozen", "copied and tuned", "new", "dropped"
FIXED = "fixed layout"  # the initial RoIs of an elastic student


@dataclass(frozen=True)
class WeightFate:
    """Correspondence of a weight in teacher and student.

    Attributes:
        student: name in the student, "" if it was dropped.
        teacher: name in the teacher, "" if it is new.
        fate: one of "copied and frozen", "copied and tuned", "new", "dropped", "fixed layout".
        numbers: number of elements.
    """

    student: str
    teacher: str
    fate: str
    numbers: int


@dataclass(frozen=True)
class InheritanceReport:
    """Report on every weight of teacher and student. `str(report)` is a table by module.

    Attributes:
        teacher: name of the teacher.
        fates: one entry per weight.
    """

    teacher: str
    fates: tuple[WeightFate, ...]

    def to_dict(self) -> dict[str, Any]:
        """Convert the report to JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        rows: Counter[tuple[str, str]] = Counter()
        for fate in self.fates:
            rows[_part(fate), fate.fate] += fate.numbers
        lines = [f"inherited from {self.teacher}"]
        lines += [f"  {part:32}{fate:20}{numbers:>14,}" for (part, fate), numbers in rows.items()]
        return "\n".join(lines)


def _part(fate: WeightFate) -> str:
    pieces = (fate.student or f"teacher.{fate.teacher}").split(".")
    depth = 4 if "blocks" in pieces[:3] and pieces[0] == "cortex" else 3
    return ".".join(pieces[: min(depth, len(pieces) - 1) or 1])


def bootstrap_from(
    teacher: Teacher,
    tokens: int | TokenCounts = 64,
    *,
    drop: int | None = None,
    tune: int | None = None,
    freeze: int | None = None,
    focus_width: int | None = None,
    points: int = 16,
    repeats: int = 4,
    stem_channels: int = 64,
    initial_rois: Tensor | None = None,
    default_tokens: int | None = None,
    inherit: bool = True,
) -> tuple[SparseFormer, InheritanceReport]:
    """Create a SparseFormer with the teacher's last blocks, norm and head; the rest is new (arXiv 2312.01987).

    Blocks 0…drop−1 are dropped, and the next `tune` blocks are copied and tuned. The last `freeze` blocks, the final
    norm, the pooling and the head are copied and frozen: `requires_grad` of their parameters is False. The text encoder
    is not copied.

    Args:
        teacher: from `open_teacher`.
        tokens: number of latent tokens, without CLS and registers. Several counts make an elastic student, whose
            initial RoIs are the layout of whatever count is requested and are not learned.
        drop, tune, freeze: numbers of blocks, which must add up to the teacher's N. By default a third each. If two are
            given, they determine the third; if one is given, `freeze`, or else `tune`, takes the remaining blocks.
        focus_width: width of the focusing transformer, a multiple of 64 (the channels of its heads); by default half
            the teacher's width.
        points, repeats, stem_channels: see `FocusConfig` and `StemConfig`.
        initial_rois: float[tokens, 4], (x1, y1, x2, y2) in [0, 1], initial RoIs; by default tiles that cover the image.
        default_tokens: number of tokens of an elastic student unless one is requested; by default the largest.
        inherit: False to copy nothing: a student of the same shape with new weights, as a baseline.

    Raises:
        UserError: the arguments do not match the teacher.
    """
    drop, tune = _split(teacher, drop, tune, freeze)
    width = max(64, teacher.cortex.width // 2 // 64 * 64) if focus_width is None else focus_width
    if width % 64:
        raise UserError(f"focus_width must be a multiple of 64 (the channels of a head), got {width}.")
    counts = TokenCounts.parse(str(tokens)) if isinstance(tokens, int) else tokens
    elastic = len(counts.counts) > 1
    default = counts.counts[-1] if default_tokens is None else default_tokens
    if default not in counts:
        raise UserError(f"The default of {default} tokens is not among the trained counts, {counts}.")
    config = SparseFormerConfig(
        StemConfig(stem_channels),
        FocusConfig("bootstrapped", default, width, heads=width // 64, points=points, repeats=repeats),
        replace(teacher.cortex, depth=teacher.cortex.depth - drop),
        teacher.preprocessing,
        teacher=teacher.name,
        licence=teacher.licence,
        trained_tokens=str(counts) if elastic else "",
    )
    student = SparseFormer(config)
    if initial_rois is not None:
        if elastic:
            raise UserError(f"A student of {counts} tokens starts with their layouts: leave out initial_rois.")
        _set_rois(student, initial_rois)
    report = _copy_weights(teacher, student, drop, tune) if inherit else _copy_nothing(teacher, student)
    return student, _fix_layout(student, report) if elastic else report


def continue_from(student: SparseFormer, directory: str | Path) -> None:
    """Give a new student the weights of an earlier one, e.g. one that was trained on smaller images.

    Args:
        student: from `bootstrap_from`.
        directory: an encoder with the same teacher, stem, focusing transformer and cortex. The input size and the
            trained token counts may differ.

    Raises:
        UserError: the directory holds no encoder, or one of another teacher or shape.
    """
    config, weights = load_directory(directory)
    for name in ("teacher", "stem", "focus", "cortex"):
        theirs, own = getattr(config, name), getattr(student.config, name)
        if theirs != own:
            raise UserError(f"Cannot continue from {directory}: its {name} is {theirs}, this student's is {own}.")
    initial_rois = student.focus.initial_rois.weight
    layout = initial_rois.detach().clone()
    load_strictly(student, weights, source=str(directory))
    if not initial_rois.requires_grad:  # an elastic student starts with the layout of its count, not with learned RoIs
        with torch.no_grad():
            initial_rois.copy_(layout)


def _fix_layout(student: SparseFormer, report: InheritanceReport) -> InheritanceReport:
    """Exclude the initial RoIs from training: those learned for one count would not apply to the others."""
    student.focus.initial_rois.requires_grad_(False)
    name = "focus.initial_rois.weight"
    fates = tuple(replace(fate, fate=FIXED) if fate.student == name else fate for fate in report.fates)
    return replace(report, fates=fates)


@torch.no_grad()
def _set_rois(student: SparseFormer, rois: Tensor) -> None:
    weight = student.focus.initial_rois.weight
    if rois.shape != weight.shape:
        raise UserError(
            f"The initial RoIs must have the shape {list(weight.shape)} (x1, y1, x2, y2), got {list(rois.shape)}."
        )
    weight.copy_(rois)


def _copy_nothing(teacher: Teacher, student: SparseFormer) -> InheritanceReport:
    fates = [WeightFate(name, "", NEW, value.numel()) for name, value in student.state_dict().items()]
    fates += [WeightFate("", name, DROPPED, value.numel()) for name, value in teacher.trunk.state_dict().items()]
    return InheritanceReport(teacher.name, tuple(fates))


def _split(teacher: Teacher, drop: int | None, tune: int | None, freeze: int | None) -> tuple[int, int]:
    """Numbers of blocks to drop and to tune, after filling in defaults and checking them."""
    blocks = teacher.cortex.depth
    third = round(blocks / 3)
    if drop is None:
        drop = third if tune is None or freeze is None else blocks - tune - freeze
    if tune is None:
        tune = min(third, blocks - drop) if freeze is None else blocks - drop - freeze
    freeze = blocks - drop - tune if freeze is None else freeze
    if min(drop, tune, freeze) < 0 or drop == blocks or drop + tune + freeze != blocks:
        raise UserError(
            f"Cannot drop {drop} and tune {tune} of the {blocks} blocks of {teacher.name} and freeze {freeze}: "
            f"none may be negative, they must add up to {blocks}, and at least one block must remain."
        )
    return drop, tune


def _copy_weights(teacher: Teacher, student: SparseFormer, drop: int, tune: int) -> InheritanceReport:
    old, new = teacher.trunk.state_dict(), student.cortex.trunk.state_dict()
    copied, fates = {}, []
    for name in new:
        source = _teacher_name(name, drop)
        copied[name] = old[source]
        tuned = name.startswith("blocks.") and int(name.split(".")[1]) < tune
        fates.append(WeightFate(f"cortex.trunk.{name}", source, TUNED if tuned else FROZEN, new[name].numel()))
    student.cortex.trunk.load_state_dict(copied)
    taken = {fate.teacher for fate in fates}
    fates += [WeightFate("", name, DROPPED, value.numel()) for name, value in old.items() if name not in taken]
    known = {fate.student for fate in fates}
    weights = student.state_dict()
    fates += [WeightFate(name, "", NEW, value.numel()) for name, value in weights.items() if name not in known]
    _freeze(student, {fate.student for fate in fates if fate.fate == FROZEN})
    return InheritanceReport(teacher.name, tuple(sorted(fates, key=lambda fate: (fate.fate == DROPPED, fate.student))))


def _teacher_name(name: str, drop: int) -> str:
    pieces = name.split(".")
    if pieces[0] == "blocks":
        pieces[1] = str(int(pieces[1]) + drop)
    return ".".join(pieces)


def _freeze(student: nn.Module, frozen: set[str]) -> None:
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(name not in frozen)
