"""Opens a teacher: any pre-trained VisionTransformer of timm or open_clip, by name, from a local file or directory."""

from pathlib import Path

from sparse_vlm.bootstrap.teacher import Teacher, TextSide
from sparse_vlm.bootstrap.timm_teachers import open_timm, open_timm_directory
from sparse_vlm.errors import UserError

__all__ = ["Teacher", "TextSide", "open_teacher"]


def open_teacher(spec: str, pretrained: bool = True, image_size: int | None = None) -> Teacher:
    """Opens a teacher.

    Args:
        spec: "timm:NAME[.TAG]" or "open_clip:NAME/TAG" with weights from the hub, "timm:NAME@WEIGHTS_FILE" or
            "open_clip:NAME@WEIGHTS_FILE", or a directory that `open_clip` (open_clip_config.json) or timm
            (`timm.models.save_for_hf`: config.json) wrote, with the weights beside it.
        pretrained: False: random weights (tests).
        image_size: input side in pixels instead of the model's own; position embeddings are resampled.

    Raises:
        UserError: the specification is malformed, the model or its weights are unknown, unreachable or damaged, or
            the model cannot be inherited: it is no plain VisionTransformer.
    """
    if image_size is not None and image_size < 1:
        raise UserError(f"The image size must be positive, got {image_size}.")
    if Path(spec).is_dir():
        return _open_directory(Path(spec), pretrained, image_size)
    library, _, name = spec.partition(":")
    if library not in ("timm", "open_clip") or not name:
        raise UserError(
            f"Cannot open the teacher {spec!r}: it is no directory. Write timm:NAME, timm:NAME@FILE, "
            "open_clip:NAME/TAG, open_clip:NAME@FILE, or the path of a directory that timm or open_clip wrote."
        )
    name, _, file = name.partition("@")
    if file and not Path(file).is_file():
        raise UserError(f"There is no weights file {file} (from the teacher {spec!r}).")
    weights = Path(file) if file else None
    if library == "timm":
        return open_timm(name, weights, pretrained, image_size)
    from sparse_vlm.bootstrap.open_clip_teachers import open_open_clip  # an extra, and slow to import

    return open_open_clip(name, weights, pretrained, image_size)


def _open_directory(directory: Path, pretrained: bool, image_size: int | None) -> Teacher:
    if (directory / "open_clip_config.json").is_file():
        from sparse_vlm.bootstrap.open_clip_teachers import open_open_clip_directory

        return open_open_clip_directory(directory, pretrained, image_size)
    if (directory / "config.json").is_file():
        return open_timm_directory(directory, pretrained, image_size)
    raise UserError(
        f"{directory} holds no teacher: neither open_clip's open_clip_config.json nor timm's config.json is there."
    )
