"""LLaVA's question files: JSON lines with "question_id", "image", "text", "category"."""

from pathlib import Path

from eval.scoring.protocol import Question
from eval.scoring.records import Record, field, numbered_lines, question_id, read_lines, read_text


def is_llava_file(path: Path) -> bool:
    """Return whether the first line of a file is in LLaVA's format.

    Raises:
        UserError: no such file.
    """
    _, first = next(iter(numbered_lines(read_text(path))), (1, ""))
    return first.startswith("{") and '"question_id"' in first and '"text"' in first and first.rstrip().endswith("}")


def read_llava_questions(path: Path, images: Path | None) -> list[Question]:
    """Read the questions of a file in LLaVA's format. Lines without "image" are questions without an image.

    Raises:
        UserError: no such file, or a malformed line.
    """
    return [_question(record, images, place) for place, record in read_lines(path)]


def _question(record: Record, images: Path | None, place: str) -> Question:
    image = field(record, "image", str, place) if "image" in record else None
    return Question(
        question_id(record, place),
        field(record, "text", str, place),
        image_file(images, image) if image is not None else None,
        str(record.get("category", "default")),
    )


def image_file(folder: Path | None, name: str) -> Path:
    """Return the path of an image in a folder, or its name if there is no folder, as in scoring."""
    return folder / name if folder is not None else Path(name)
