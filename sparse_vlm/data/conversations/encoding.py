"""LLaVA's JSON -> token ids with targets at the assistant's words.

A sample is `{"id", "image": "rel/path" (a list: several; absent: text only), "conversations": [{"from": "human",
"value": "<image>\\nQ"}, {"from": "gpt", "value": "A"}, ...]}`; other layouts that are read are in
formats.py. The targets are already shifted: `targets[p]` is the
token that position p has to predict, or IGNORE. They cover exactly what the model has to generate: each answer and
the token that ends its turn, nothing of the template after it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sparse_vlm.data.conversations.formats import IMAGE_PLACEHOLDER, LLAVA_ROLES, read_record
from sparse_vlm.errors import UserError
from sparse_vlm.vlm.language.turns import ChatFormat

IGNORE = -100
NAMES = {role: name for name, role in LLAVA_ROLES.items()}


@dataclass(frozen=True)
class Sample:
    """One conversation: `images` are the names of its pictures in the order of their placeholders; `turns` are
    (role, text) with the chat template's role names. The only placeholder of a turn stands at its start."""

    id: str
    images: tuple[str, ...]
    turns: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Row:
    """A tokenised conversation; four lists of the same length L.

    Attributes:
        input_ids: tokens; what follows the last predicting position is cut off, nothing depends on it.
        targets: the token that each position predicts, or IGNORE.
        positions: position ids. In a row of independent turns each turn goes on from the shared prefix.
        segments: 0 for the prefix, k for what belongs to independent turn k alone. A position sees the earlier
            positions of segment 0 and of its own segment.
    """

    input_ids: list[int]
    targets: list[int]
    positions: list[int]
    segments: list[int]


def parse_sample(record: dict[str, Any], index: int) -> Sample:
    """Checks one record and brings the only placeholder of a turn to the turn's start, as LLaVA does; several in a turn
    stay where they are.

    Args:
        record: as in the file, in one of the layouts of sparse_vlm/data/conversations/formats.py.
        index: its place in the file, the name of a sample without "id".

    Raises:
        UserError: with the sample's id: unknown keys or roles, roles out of order, no answer, wrong number of <image>.
    """
    name = f"number {index}" if record.get("id") is None else str(record["id"])
    images, turns = read_record(record, f"Sample {name}")
    _check_roles(name, [role for role, _ in turns])
    count = sum(text.count(IMAGE_PLACEHOLDER) for _, text in turns)
    if count != len(images):
        has = {0: "no image", 1: "one image"}.get(len(images), f"{len(images)} images")
        raise UserError(f"Sample {name} has {has} but {count} {IMAGE_PLACEHOLDER} in its text; it needs {len(images)}.")
    if any(IMAGE_PLACEHOLDER in text for role, text in turns if role != "user"):
        raise UserError(f"Sample {name}: {IMAGE_PLACEHOLDER} must stand in a human turn.")
    for place, (role, text) in enumerate(turns):
        if text.count(IMAGE_PLACEHOLDER) == 1:
            turns[place] = (role, _with_image(text.replace(IMAGE_PLACEHOLDER, "").strip()))
    return Sample(name, tuple(images), tuple(turns))


def _with_image(text: str) -> str:
    return f"{IMAGE_PLACEHOLDER}\n{text}" if text else IMAGE_PLACEHOLDER


def _check_roles(name: str, roles: list[str]) -> None:
    """Whether the roles are [system,] user, assistant, user, assistant, ..."""
    dialogue = roles[1:] if roles[0] == "system" else roles
    if not dialogue or dialogue != ["user", "assistant"] * (len(dialogue) // 2):
        raise UserError(
            f"Sample {name}: roles must be [system,] human, gpt, human, gpt, ...; they are: "
            f"{', '.join(NAMES[role] for role in roles)}."
        )


def encode(sample: Sample, chat: ChatFormat) -> Row:
    """Tokens and targets of a conversation in which every turn sees all earlier ones.

    Raises:
        UserError: with the sample's id, see `ChatFormat.answers`.
    """
    if chat.plain and (len(sample.turns) != 2 or not sample.images):
        raise UserError(
            f"Sample {sample.id} has {len(sample.turns)} turns and {len(sample.images)} images: the plain format is "
            "for captions, one human turn with an image and one answer. Leave out --version plain."
        )
    try:
        ids, spans = chat.answers(sample.turns)
    except UserError as error:
        raise UserError(f"Sample {sample.id}: {error}") from error
    targets = [IGNORE] * len(ids)
    for start, end in spans:
        targets[start - 1 : end] = ids[start : end + 1]
    last = spans[-1][1]
    return Row(ids[:last], targets[:last], list(range(last)), [0] * last)


def encode_independent(sample: Sample, chat: ChatFormat) -> Row:
    """Tokens and targets of a conversation whose turns do not see each other: the same numbers as one
    conversation per turn, each with the system turn and the image, at the cost of one shared prefix (ours).

    The prefix is the longest common beginning of these conversations' tokens that predicts nothing.

    Raises:
        UserError: as `encode`, and several images.
    """
    if len(sample.images) > 1:
        raise UserError(
            f"Sample {sample.id} has {len(sample.images)} images: --independent_turns gives every turn the one image."
        )
    system = tuple(turn for turn in sample.turns if turn[0] == "system")
    dialogue = sample.turns[len(system) :]
    rows = []
    for (_, question), answer in zip(dialogue[::2], dialogue[1::2], strict=True):
        if sample.images:
            question = _with_image(question.removeprefix(IMAGE_PLACEHOLDER).lstrip())
        rows.append(encode(replace(sample, turns=(*system, ("user", question), answer)), chat))
    shared = _common_beginning(rows)
    joined = Row(rows[0].input_ids[:shared], [IGNORE] * shared, list(range(shared)), [0] * shared)
    for turn, row in enumerate(rows, start=1):
        joined.input_ids.extend(row.input_ids[shared:])
        joined.targets.extend(row.targets[shared:])
        joined.positions.extend(row.positions[shared:])
        joined.segments.extend([turn] * (len(row.input_ids) - shared))
    return joined


def _common_beginning(rows: Sequence[Row]) -> int:
    """How many first positions have the same token and no target in every row."""
    length = 0
    for tokens, targets in zip(
        zip(*(row.input_ids for row in rows), strict=False),  # stops at the shortest
        zip(*(row.targets for row in rows), strict=False),
        strict=True,
    ):
        if len(set(tokens)) > 1 or any(target != IGNORE for target in targets):
            break
        length += 1
    return length
