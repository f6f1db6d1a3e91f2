"""Samples -> token ids and targets. This is the only place that decides which tokens are learned.

The targets are already shifted: `targets[p]` is the token that position p predicts, or IGNORE. They cover exactly what
the model has to generate, which is each answer and the token that ends its turn, and nothing else of the template.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sparse_vlm.data.conversations.formats import IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER
from sparse_vlm.data.conversations.samples import Sample, with_image
from sparse_vlm.errors import UserError, error_context
from sparse_vlm.vlm.language.turns import ChatFormat

IGNORE = -100


@dataclass(frozen=True)
class Row:
    """A tokenized conversation: four lists of the same length L.

    Attributes:
        input_ids: tokens up to the last position that predicts one; later tokens affect nothing.
        targets: the token that each position predicts, or IGNORE.
        positions: position ids. Each independent turn continues from the shared prefix.
        segments: 0 for the prefix, k for independent turn k. A position attends to the earlier positions of segment 0
            and of its own segment.
    """

    input_ids: list[int]
    targets: list[int]
    positions: list[int]
    segments: list[int]


def encode(sample: Sample, chat: ChatFormat) -> Row:
    """Tokenize a conversation in which each turn attends to all earlier turns.

    Raises:
        UserError: the chat template does not fit the sample; see `ChatFormat.answers`. Names the sample.
    """
    if chat.plain and (len(sample.turns) != 2 or not (sample.images or sample.videos)):
        raise UserError(
            f"{sample} has {len(sample.turns)} turns and {len(sample.images)} images: the plain format is for "
            "captions, one human turn with an image or a video and one answer. Leave out --version plain."
        )
    if chat.plain and sample.regions:
        raise UserError(f"{sample} has regions, which the plain format does not print. Leave out --version plain.")
    with error_context(str(sample)):
        ids, spans = chat.answers(sample.turns, [shown.text for shown in sample.shown])
    targets = [IGNORE] * len(ids)
    for start, end in spans:  # ids[start:end] is the answer, ids[end] ends its turn
        targets[start - 1 : end] = ids[start : end + 1]
    last = spans[-1][1]
    return Row(ids[:last], targets[:last], list(range(last)), [0] * last)


def encode_independent(sample: Sample, chat: ChatFormat) -> Row:
    """Tokenize a conversation whose turns do not attend to each other.

    This is equivalent to one conversation per turn, each with the system turn and the image, but computes their common
    prefix once: the longest sequence of first tokens that are the same in all of them and predict nothing. Regions are
    not part of it: their tokens have the same id, but not the same box.

    Raises:
        UserError: as in `encode`, or the sample has several images or videos. Names the sample.
    """
    visual = [*sample.images, *sample.videos]
    if len(visual) > 1:
        kinds = "images and videos" if sample.videos else "images"
        raise UserError(f"{sample} has {len(visual)} {kinds}: --independent_turns gives every turn the one image.")
    placeholder = VIDEO_PLACEHOLDER if sample.videos else IMAGE_PLACEHOLDER
    system = tuple(turn for turn in sample.turns if turn[0] == "system")
    dialogue = sample.turns[len(system) :]
    rows = []
    for (_, question), answer in zip(dialogue[::2], dialogue[1::2], strict=True):
        if visual:
            question = with_image(question.removeprefix(placeholder).lstrip(), placeholder)
        rows.append(encode(replace(sample, turns=(*system, ("user", question), answer)), chat))
    shared = min(_common_prefix(rows), *(_first_region(row, sample, chat) for row in rows))
    joined = Row(rows[0].input_ids[:shared], [IGNORE] * shared, list(range(shared)), [0] * shared)
    for turn, row in enumerate(rows, start=1):
        joined.input_ids.extend(row.input_ids[shared:])
        joined.targets.extend(row.targets[shared:])
        joined.positions.extend(row.positions[shared:])
        joined.segments.extend([turn] * (len(row.input_ids) - shared))
    return joined


def _first_region(row: Row, sample: Sample, chat: ChatFormat) -> int:
    """Return the place of the first token of a region in the row of one turn; its length if there is none."""
    places = [place for place, token in enumerate(row.input_ids) if token == chat.image_token_id]
    before = sum(view.tokens for view in sample.views(chat.tokens_per_image, 0, chat.tokens_per_frame))
    return next(iter(places[before:]), len(row.input_ids))


def _common_prefix(rows: Sequence[Row]) -> int:
    """Count the first positions that have the same token and no target in all rows."""
    length = 0
    for tokens, targets in zip(
        zip(*(row.input_ids for row in rows), strict=False),  # stops at the shortest row
        zip(*(row.targets for row in rows), strict=False),
        strict=True,
    ):
        if len(set(tokens)) > 1 or any(target != IGNORE for target in targets):
            break
        length += 1
    return length
