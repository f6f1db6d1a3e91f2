"""Records of conversations -> checked samples.

A LLaVA record is `{"id", "image": "rel/path" (or a list of paths; absent for text only), "conversations": [{"from":
"human", "value": "<image>\\nQ"}, {"from": "gpt", "value": "A"}, …]}`. formats.py has the other layouts.
"""

from dataclasses import dataclass
from typing import NamedTuple

from sparse_vlm.data.conversations.formats import (
    IMAGE_PLACEHOLDER,
    LLAVA_ROLES,
    REGION_PLACEHOLDER,
    VIDEO_PLACEHOLDER,
    Record,
    Turn,
    read_record,
)
from sparse_vlm.errors import UserError, error_context
from sparse_vlm.vlm.views import Box, View, views_of_texts

LLAVA_NAMES = {role: name for name, role in LLAVA_ROLES.items()}


class Shown(NamedTuple):
    """The frames of a video that a sample shows.

    Attributes:
        places: of the frames in the file, in ascending order.
        text: what replaces `<video>`: an `<image>` for each frame, perhaps with times.
    """

    places: tuple[int, ...]
    text: str


@dataclass(frozen=True)
class Sample:
    """A checked conversation.

    Attributes:
        id: the record's "id", or "number N" without one.
        images: names of the images, in the order of their placeholders.
        turns: (role, text) with the role names of chat templates. A single `<image>` or `<video>` stands at the start.
        regions: the box of each `<region>`, in the coordinates of its image.
        videos: names of the videos, in the order of their placeholders.
        shown: the frames of each video, once its file has been looked at; see `VideoReader.shown`.
    """

    id: str
    images: tuple[str, ...]
    turns: tuple[Turn, ...]
    regions: tuple[Box, ...] = ()
    videos: tuple[str, ...] = ()
    shown: tuple[Shown, ...] = ()

    def __str__(self) -> str:
        return f"Sample {self.id}"

    def views(self, tokens: int, region_tokens: int, frame_tokens: int = 1) -> list[View]:
        """Return the views of its placeholders, in order, with boxes in the coordinates of their images.

        Frames of videos are counted after the images.

        Args:
            tokens: number of visual tokens of each image.
            region_tokens: number of visual tokens of each region.
            frame_tokens: number of visual tokens of each frame.

        Raises:
            UserError: the placeholders do not fit the images and boxes.
        """
        text = "".join(words for role, words in self.turns if role == "user")
        counts = [tokens] * len(self.images)
        frames = [len(shown.places) for shown in self.shown] or [0] * len(self.videos)
        return views_of_texts(
            [text],
            counts,
            self.regions,
            region_tokens,
            lambda _, box: (box[0], box[1], box[2], box[3]),
            frames,
            frame_tokens,
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
    images, videos, turns, regions = read_record(record, f"Sample {name}")
    _check_roles(name, [role for role, _ in turns])
    named = {IMAGE_PLACEHOLDER: images, VIDEO_PLACEHOLDER: videos}
    for placeholder, names in named.items():
        kind, count = placeholder.strip("<>"), sum(text.count(placeholder) for _, text in turns)
        if count != len(names):
            has = {0: f"no {kind}", 1: f"one {kind}"}.get(len(names), f"{len(names)} {kind}s")
            raise UserError(f"Sample {name} has {has} but {count} {placeholder} in its text; it needs {len(names)}.")
    for placeholder in (*named, REGION_PLACEHOLDER):
        if any(placeholder in text for role, text in turns if role != "user"):
            raise UserError(f"Sample {name}: {placeholder} must stand in a human turn.")
    for place, (role, text) in enumerate(turns):
        single = [kind for kind in named for _ in range(text.count(kind))]
        if len(single) == 1:
            turns[place] = (role, with_image(text.replace(single[0], "").strip(), single[0]))
    sample = Sample(name, tuple(images), tuple(turns), tuple(regions), tuple(videos))
    with error_context(str(sample)):
        sample.views(1, 1)
    return sample


def with_image(text: str, placeholder: str = IMAGE_PLACEHOLDER) -> str:
    """Put a placeholder before the text of a turn."""
    return f"{placeholder}\n{text}" if text else placeholder


def _check_roles(name: str, roles: list[str]) -> None:
    dialogue = roles[1:] if roles[0] == "system" else roles
    if not dialogue or dialogue != ["user", "assistant"] * (len(dialogue) // 2):
        raise UserError(
            f"Sample {name}: roles must be [system,] human, gpt, human, gpt, ...; they are: "
            f"{', '.join(LLAVA_NAMES[role] for role in roles)}."
        )
