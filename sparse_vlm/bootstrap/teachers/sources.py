"""Opening a teacher by name, or from a local file or directory."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sparse_vlm.bootstrap.teachers.teacher import Teacher
from sparse_vlm.bootstrap.teachers.timm import open_timm, open_timm_directory
from sparse_vlm.errors import UserError


@dataclass(frozen=True)
class TeacherSource:
    """Source of a teacher.

    Attributes:
        library: library that defines the model.
        name: NAME or NAME.TAG for timm, NAME or NAME/TAG for open_clip; "" for a directory.
        file: local weights to use instead of the library's own.
        directory: directory with configuration and weights.
    """

    library: Literal["timm", "open_clip"]
    name: str = ""
    file: Path | None = None
    directory: Path | None = None


def parse_spec(spec: str) -> TeacherSource:
    """Parse the specification of a teacher; see `open_teacher` for its forms.

    Raises:
        UserError: the specification is malformed, or refers to a file or directory that does not contain a teacher.
    """
    directory = Path(spec)
    if directory.is_dir():
        if (directory / "open_clip_config.json").is_file():
            return TeacherSource("open_clip", directory=directory)
        if (directory / "config.json").is_file():
            return TeacherSource("timm", directory=directory)
        raise UserError(
            f"{directory} does not contain a teacher: it has neither open_clip's open_clip_config.json nor timm's "
            "config.json."
        )
    library, _, name = spec.partition(":")
    if library not in ("timm", "open_clip") or not name:
        raise UserError(
            f"Cannot open the teacher {spec!r}: it is not a directory. Write timm:NAME, timm:NAME@FILE, "
            "open_clip:NAME/TAG, open_clip:NAME/TAG@FILE, or the path of a directory written by timm or open_clip."
        )
    name, _, file = name.partition("@")
    if file and not Path(file).is_file():
        raise UserError(f"There is no weights file {file} (from the teacher {spec!r}).")
    return TeacherSource("timm" if library == "timm" else "open_clip", name, Path(file) if file else None)


def open_teacher(
    spec: str, pretrained: bool = True, image_size: int | None = None, layer: int | None = None
) -> Teacher:
    """Open a teacher.

    Args:
        spec: "timm:NAME[.TAG]" or "open_clip:NAME/TAG" for weights from the hub, "timm:NAME[.TAG]@WEIGHTS_FILE" or
            "open_clip:NAME[/TAG]@WEIGHTS_FILE" for local weights (TAG says which weights they are), or a directory
            written by open_clip (open_clip_config.json) or by `timm.models.save_for_hf` (config.json), including the
            weights.
        pretrained: False for random weights (used in tests).
        image_size: input side in pixels instead of the model's own; position embeddings are resampled.
        layer: block whose tokens are the representation, see `Teacher.cut_behind`; None for the last.

    Raises:
        UserError: the specification is malformed, the model or its weights are unknown, unreachable or damaged, the
            model cannot be inherited because it is not a plain VisionTransformer, or it has no such block.
    """
    if image_size is not None and image_size < 1:
        raise UserError(f"The image size must be positive, got {image_size}.")
    teacher = _open(spec, pretrained, image_size)
    if layer is not None:
        teacher.cut_behind(layer)
    return teacher


def _open(spec: str, pretrained: bool, image_size: int | None) -> Teacher:
    source = parse_spec(spec)
    if source.library == "timm":
        if source.directory is not None:
            return open_timm_directory(source.directory, pretrained, image_size)
        return open_timm(source.name, source.file, pretrained, image_size)
    try:
        from sparse_vlm.bootstrap.teachers.open_clip import (  # an extra, and slow to import
            open_open_clip,
            open_open_clip_directory,
        )
    except ModuleNotFoundError as error:
        raise UserError(f"The teacher {spec!r} needs {error.name}: pip install 'sparse-vlm[bootstrap]'.") from error

    if source.directory is not None:
        return open_open_clip_directory(source.directory, pretrained, image_size)
    return open_open_clip(source.name, source.file, pretrained, image_size)
