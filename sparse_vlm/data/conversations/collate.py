"""Rows -> one batch for a transformers causal LM, with the head computed at the predicting positions only."""

from collections.abc import Sequence
from typing import Any

import torch

from sparse_vlm.data.conversations.encoding import IGNORE, Row
from sparse_vlm.errors import UserError, unknown_choice

PACKINGS = ("longest", "one row")


class ConversationCollator:
    """Puts rows into a batch, and the images of the samples that have any, in the order of their placeholders.

    The batch holds `input_ids` int64[B,L]; `logits_to_keep` bool[B,L], true at the P predicting positions, so that
    the vocabulary is scored there and nowhere else; `labels` = `shift_labels` int64[P] (transformers' loss takes the
    second as already shifted); under `image_key` the I > 0 images, stacked; and
      - `attention_mask` int64[B,L], rows of dependent turns, padded on the right, or
      - `attention_mask` bool[B,1,L,L] (query, key) and `position_ids` int64[B,L], rows of independent turns, or
      - `position_ids` int64[B,L] and `use_cache` False, packed rows. Where the positions start again transformers'
        masks let nothing through, unless there is a mask or a cache; so do its kernels for a single row.

    Args:
        pad_token_id: for the padding, which nothing attends to.
        independent_turns: as in the dataset.
        packing: None: a row for each sample. "longest": as few rows as fit into the length of the longest; "one row":
            a single one without padding, which flash attention needs and which others pay for by its length squared.
        image_key: the model's name for what the dataset's images are: "pixel_values" or "visual_tokens".
        blank_image: (image_token_id, tokens per image, shape of an image) or None. When given, a batch without any
            image gets one of zeros whose tokens nothing attends to: the vision parts then take part in every step, with
            zero gradient, which keeps several processes from waiting for each other for ever. Batches with an
            image, and all batches of a single process, do without.

    Raises:
        UserError: unknown packing, or packing of independent turns.
    """

    def __init__(
        self,
        pad_token_id: int,
        *,
        independent_turns: bool = False,
        packing: str | None = None,
        image_key: str = "pixel_values",
        blank_image: tuple[int, int, torch.Size] | None = None,
    ) -> None:
        if packing not in (None, *PACKINGS):
            raise unknown_choice("packing", packing, PACKINGS)
        if packing is not None and independent_turns:
            raise UserError("--packing and --independent_turns do not go together: both decide who sees whom in a row.")
        self.pad_token_id, self.independent_turns, self.blank_image = pad_token_id, independent_turns, blank_image
        self.packing, self.image_key = packing, image_key

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        rows: list[Row] = [example["row"] for example in examples]
        images: list[list[torch.Tensor]] = [example["images"] for example in examples]
        blank: list[int] = []  # its tokens
        if not any(images) and self.blank_image is not None:
            image_token_id, width, shape = self.blank_image
            blank = [image_token_id] * width
            images[0] = [torch.zeros(shape)]
        if self.packing is not None:
            rows, images, blank = self._packed(rows, images, blank)
        length = max(len(rows[0].input_ids) + len(blank), *(len(row.input_ids) for row in rows))
        input_ids = _pad([row.input_ids for row in rows], length, self.pad_token_id)
        start = len(rows[0].input_ids)
        input_ids[0, start : start + len(blank)] = torch.tensor(blank, dtype=torch.long)
        targets = _pad([row.targets for row in rows], length, IGNORE)
        labels = targets[targets != IGNORE]
        batch = {
            "input_ids": input_ids,
            "logits_to_keep": targets != IGNORE,
            "labels": labels,
            "shift_labels": labels,
            **self._who_sees_whom(rows, length),
        }
        stacked = [image for of_row in images for image in of_row]
        if stacked:
            batch[self.image_key] = torch.stack(stacked)
        return batch

    def _packed(
        self, rows: list[Row], images: list[list[torch.Tensor]], blank: list[int]
    ) -> tuple[list[Row], list[list[torch.Tensor]], list[int]]:
        """The rows joined, their images in the new order; the blank image's tokens are a row like the others."""
        if blank:
            size = len(blank)
            rows, images = [*rows, Row(blank, [IGNORE] * size, list(range(size)), [0] * size)], [*images, []]
        lengths = [len(row.input_ids) for row in rows]
        groups = pack(lengths, max(lengths) if self.packing == "longest" else sum(lengths))
        order = [index for group in groups for index in group]
        return [_joined([rows[index] for index in group]) for group in groups], [images[i] for i in order], []

    def _who_sees_whom(self, rows: list[Row], length: int) -> dict[str, Any]:
        if self.packing is not None:
            return {"position_ids": _pad([row.positions for row in rows], length, 0), "use_cache": False}
        if self.independent_turns:
            segments = _pad([row.segments for row in rows], length, -1)
            positions = _pad([row.positions for row in rows], length, 0)
            return {"attention_mask": segment_mask(segments), "position_ids": positions}
        return {"attention_mask": _pad([[1] * len(row.input_ids) for row in rows], length, 0)}


def pack(lengths: Sequence[int], width: int) -> list[list[int]]:
    """Which items lie one behind the other, so that no group is longer than `width`: first fit, longest first.

    Args:
        lengths: of the items, none above `width`.
        width: of a group.

    Returns:
        The items' indices by group; each once.
    """
    groups: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        place = next((group for group, left in enumerate(room) if left >= lengths[index]), len(groups))
        if place == len(groups):
            groups.append([])
            room.append(width)
        groups[place].append(index)
        room[place] -= lengths[index]
    return groups


def segment_mask(segments: torch.Tensor) -> torch.Tensor:
    """Which key each query sees: earlier positions of segment 0 and of its own segment, and itself.

    Args:
        segments: int64[B,L], 0 the shared prefix, k > 0 a turn, -1 padding (which sees itself alone, because a
            query without any key has no softmax).

    Returns:
        bool[B,1,L,L] (query, key).
    """
    query, key = segments[:, None, :, None], segments[:, None, None, :]
    length = segments.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    sees = causal & (query >= 0) & ((key == 0) | (key == query))
    return sees | torch.eye(length, dtype=torch.bool)


def _joined(rows: Sequence[Row]) -> Row:
    """The rows one behind the other; each row's positions stay."""
    lists = zip(*((row.input_ids, row.targets, row.positions, row.segments) for row in rows), strict=True)
    return Row(*([value for part in parts for value in part] for parts in lists))


def _pad(rows: Sequence[list[int]], length: int, value: int) -> torch.Tensor:
    """int64[B,length], each row filled up with `value` on the right."""
    return torch.tensor([row + [value] * (length - len(row)) for row in rows], dtype=torch.long)
