"""Zero-shot classification by the nearest text embedding of a class."""

from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from sparse_vlm.bootstrap.teachers import TextEncoder
from sparse_vlm.errors import UserError, one_line


def imagenet_prompts(names: Sequence[str] | None = None) -> tuple[Sequence[str], Sequence[Callable[[str], str]]]:
    """Return open_clip's class names and templates for ImageNet-1k, in the order of its sorted class folders.

    Args:
        names: other class names for the same templates.
    """
    import open_clip  # its import is slow and only these tables need it

    return open_clip.IMAGENET_CLASSNAMES if names is None else names, open_clip.OPENAI_IMAGENET_TEMPLATES


def read_class_names(file: str | Path) -> list[str]:
    """Read class names from a text file, one per line. Names may repeat, as two names of ImageNet do."""
    if not Path(file).is_file():
        raise UserError(f"There is no file of class names {file}.")
    try:
        names = [line.strip() for line in Path(file).read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise UserError(
            f"The class names {file} are not UTF-8 text: {one_line(error)}. Save the file as UTF-8."
        ) from error
    if not names:
        raise UserError(f"The file of class names {file} is empty: write one name per line, for each class folder.")
    if "" in names:
        raise UserError(f"Line {names.index('') + 1} of the class names {file} is empty.")
    return names


def class_embeddings(
    text: TextEncoder, names: Sequence[str], templates: Sequence[Callable[[str], str]] = (str,)
) -> Tensor:
    """Embed classes by open_clip's zero-shot classifier: one unit embedding per class, averaged over its templates.

    Args:
        text: text encoder of a teacher.
        names: K class names.
        templates: functions class name -> caption; by default the name is the caption.

    Returns:
        float32[K, D]
    """
    from open_clip import build_zero_shot_classifier  # slow to import

    device = next(text.parameters()).device
    return build_zero_shot_classifier(text.clip, text.tokenizer, names, templates, device=device).T.float()


def hits(images: Tensor, classes: Tensor, labels: Tensor) -> Tensor:
    """Check for each image if the nearest class embedding is that of its label: bool[N].

    Args:
        images: embeddings float[N, D] of any length.
        classes: unit embeddings float[K, D].
        labels: int64[N].
    """
    if images.shape[-1] != classes.shape[-1]:
        raise UserError(
            f"Image embeddings have {images.shape[-1]} channels, but text embeddings have {classes.shape[-1]}: this "
            "text encoder does not belong to this image encoder."
        )
    return (images.float() @ classes.T).argmax(dim=-1) == labels
