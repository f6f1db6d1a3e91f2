"""Records of conversations -> checked samples.

A LLaVA record is `{"id", "image": "rel/path" (or a list of paths; absent for text only), "conversations": [{"from":
"human", "value": "<image>\\nQ"}, {"from": "gpt", "value": "A"}, …]}`. formats.py has the other layouts.
"""

from dataclasses import dataclass

from sparse_vlm.data.conversations.formats import (
    IMAGE_PLACEHOLDER,
    LLAVA_ROLES,
    REGION_PLACEHOLDER,
    Record,
    Turn,
    read_record,
)
from sparse_vlm.errors import UserError, error_context
from sparse_vlm.vlm.views import Box, View, views_of_texts

LLAVA_NAMES = {role: name for name, role in LLAVA_ROLES.items()}


@dataclass(frozen=True)
class Sample:
    """A checked conversation.

    Attributes:
        id: the record's "id", or "number N" without one.
        images: names of the images, in the order of their placeholders.
        turns: (role, text) with the role names of chat templates. A single `<image>` stands at the start.
        regions: the box of each `<region>`, in the coordinates of its image.
    """

    id: str
    images: tuple[str, ...]
    turns: tuple[Turn, ...]
    regions: tuple[Box, ...] = ()

    def __str__(self) -> str:
        return f"Sample {self.id}"

    def views(self, tokens: int, region_tokens: int) -> list[View]:
        """Return the views of its placeholders, in order, with boxes in the coordinates of their images.

        Args:
            tokens: number of visual tokens of each image.
            region_tokens: number of visual tokens of each region.

        Raises:
            UserError: the placeholders do not fit the images and boxes.
        """
        text = "".join(words for role, words in self.turns if role == "user")
        counts = [tokens] * len(self.images)
        return views_of_texts(
            [text], counts, self.regions, region_tokens, lambda _, box: (box[0], box[1], box[2], box[3])
        )


def parse_sample(record: Record, index: int) -> Sample:
    """Check a record and normalize its placeholders.

    As in LLaVA, a single placeholder is moved to the start of its turn; several in one turn stay where they are.

    Args:
        record: in one of the layouts of formats.py.
        index: position in the file, which names a sample without "id".

    Raises:
        UserError: unknown keys or roles, a wrong order of roles, a wrong number of placeholders, or a wrong box. Names
            the sample.
    """
    name = f"number {index}" if record.get("id") is None else str(record["id"])
    images, turns, regions = read_record(record, f"Sample {name}")
    _check_roles(name, [role for role, _ in turns])
    count = sum(text.count(IMAGE_PLACEHOLDER) for _, text in turns)
    if count != len(images):
        has = {0: "no image", 1: "one image"}.get(len(images), f"{len(images)} images")
        raise UserError(f"Sample {name} has {has} but {count} {IMAGE_PLACEHOLDER} in its text; it needs {len(images)}.")
    for placeholder in (IMAGE_PLACEHOLDER, REGION_PLACEHOLDER):
        if any(placeholder in text for role, text in turns if role != "user"):
            raise UserError(f"Sample {name}: {placeholder} must stand in a human turn.")
    for place, (role, text) in enumerate(turns):
        if text.count(IMAGE_PLACEHOLDER) == 1:
            turns[place] = (role, with_image(text.replace(IMAGE_PLACEHOLDER, "").strip()))
    sample = Sample(name, tuple(images), tuple(turns), tuple(regions))
    with error_context(str(sample)):
        sample.views(1, 1)
    return sample


def with_image(text: str) -> str:
    """Put a placeholder before the text of a turn."""
    return f"{IMAGE_PLACEHOLDER}\n{text}" if text else IMAGE_PLACEHOLDER


def _check_roles(name: str, roles: list[str]) -> None:
    dialogue = roles[1:] if roles[0] == "system" else roles
    if not dialogue or dialogue != ["user", "assistant"] * (len(dialogue) // 2):
        raise UserError(
            f"Sample {name}: roles must be [system,] human, gpt, human, gpt, ...; they are: "
            f"{', '.join(LLAVA_NAMES[role] for role in roles)}."
        )
