"""Opens a teacher: any pre-trained VisionTransformer of timm or open_clip, by name, from a local file or directory."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sparse_vlm.bootstrap.teachers.teacher import Teacher, TextSide
from sparse_vlm.bootstrap.teachers.timm import open_timm, open_timm_directory
from sparse_vlm.errors import UserError

__all__ = ["Teacher", "TeacherSource", "TextSide", "open_teacher", "parse_spec"]


@dataclass(frozen=True)
class TeacherSource:
    """Where a teacher comes from.

    Attributes:
        library: whose model it is.
        name: NAME or NAME.TAG of timm, NAME or NAME/TAG of open_clip; "" where a directory says it.
        file: local weights instead of the library's own.
        directory: which holds configuration and weights.
    """

    library: Literal["timm", "open_clip"]
    name: str = ""
    file: Path | None = None
    directory: Path | None = None


def parse_spec(spec: str) -> TeacherSource:
    """What the specification of a teacher says, see `open_teacher`.

    Raises:
        UserError: it is malformed, or a file or directory in it does not exist or holds no teacher.
    """
    directory = Path(spec)
    if directory.is_dir():
        if (directory / "open_clip_config.json").is_file():
            return TeacherSource("open_clip", directory=directory)
        if (directory / "config.json").is_file():
            return TeacherSource("timm", directory=directory)
        raise UserError(
            f"{directory} holds no teacher: neither open_clip's open_clip_config.json nor timm's config.json is there."
        )
    library, _, name = spec.partition(":")
    if library not in ("timm", "open_clip") or not name:
        raise UserError(
            f"Cannot open the teacher {spec!r}: it is no directory. Write timm:NAME, timm:NAME@FILE, "
            "open_clip:NAME/TAG, open_clip:NAME/TAG@FILE, or the path of a directory that timm or open_clip wrote."
        )
    name, _, file = name.partition("@")
    if file and not Path(file).is_file():
        raise UserError(f"There is no weights file {file} (from the teacher {spec!r}).")
    return TeacherSource("timm" if library == "timm" else "open_clip", name, Path(file) if file else None)


def open_teacher(spec: str, pretrained: bool = True, image_size: int | None = None) -> Teacher:
    """Opens a teacher.

    Args:
        spec: "timm:NAME[.TAG]" or "open_clip:NAME/TAG" with weights from the hub, "timm:NAME[.TAG]@WEIGHTS_FILE" or
            "open_clip:NAME[/TAG]@WEIGHTS_FILE" (TAG: whose they are), or a directory that `open_clip`
            (open_clip_config.json) or timm (`timm.models.save_for_hf`: config.json) wrote, with the weights beside it.
        pretrained: False: random weights (tests).
        image_size: input side in pixels instead of the model's own; position embeddings are resampled.

    Raises:
        UserError: the specification is malformed, the model or its weights are unknown, unreachable or damaged, or
            the model cannot be inherited: it is no plain VisionTransformer.
    """
    if image_size is not None and image_size < 1:
        raise UserError(f"The image size must be positive, got {image_size}.")
    source = parse_spec(spec)
    if source.library == "timm":
        if source.directory is not None:
            return open_timm_directory(source.directory, pretrained, image_size)
        return open_timm(source.name, source.file, pretrained, image_size)
    from sparse_vlm.bootstrap.teachers.open_clip import (  # an extra, and slow to import
        open_open_clip,
        open_open_clip_directory,
    )

    if source.directory is not None:
        return open_open_clip_directory(source.directory, pretrained, image_size)
    return open_open_clip(source.name, source.file, pretrained, image_size)
