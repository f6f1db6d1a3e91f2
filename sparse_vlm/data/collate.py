"""Rows -> one batch for a transformers causal LM, with the head computed at the predicting positions only."""

from collections.abc import Sequence
from typing import Any

import torch

from sparse_vlm.data.conversations import IGNORE, Row


class ConversationCollator:
    """Pads rows on the right and stacks the images of the samples that have any, in their order.

    The batch holds `input_ids` int64[B,L]; `logits_to_keep` bool[B,L], true at the P predicting positions, so that
    the vocabulary is scored there and nowhere else; `labels` = `shift_labels` int64[P] (transformers' loss takes the
    second as already shifted); `pixel_values` float[I,3,H,W] when there are I > 0 images; and
      - `attention_mask` int64[B,L], rows of dependent turns, or
      - `attention_mask` bool[B,1,L,L] (query, key) and `position_ids` int64[B,L], rows of independent turns.

    Args:
        pad_token_id: for the padding, which nothing attends to.
        independent_turns: as in the dataset.
        blank_image: (image_token_id, tokens per image, (3, H, W)) or None. When given, a batch without any image gets
            a black one whose tokens stand in the padding: the vision parts then take part in every step, with
            zero gradient, which keeps several processes from waiting for each other for ever. Batches with an
            image, and all batches of a single process, do without.
    """

    def __init__(
        self,
        pad_token_id: int,
        *,
        independent_turns: bool = False,
        blank_image: tuple[int, int, torch.Size] | None = None,
    ) -> None:
        self.pad_token_id, self.independent_turns, self.blank_image = pad_token_id, independent_turns, blank_image

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        rows: list[Row] = [example["row"] for example in examples]
        images = [image for example in examples for image in example["images"]]
        placeholders: list[int] = []  # of the blank image, after row 0
        if not images and self.blank_image is not None:
            image_token_id, width, shape = self.blank_image
            placeholders = [image_token_id] * width
            images = [torch.zeros(shape)]
        length = max(len(rows[0].input_ids) + len(placeholders), *(len(row.input_ids) for row in rows))
        input_ids = _pad([row.input_ids for row in rows], length, self.pad_token_id)
        start = len(rows[0].input_ids)
        input_ids[0, start : start + len(placeholders)] = torch.tensor(placeholders, dtype=torch.long)
        targets = _pad([row.targets for row in rows], length, IGNORE)
        labels = targets[targets != IGNORE]
        batch = {
            "input_ids": input_ids,
            "logits_to_keep": targets != IGNORE,
            "labels": labels,
            "shift_labels": labels,
        }
        if self.independent_turns:
            segments = _pad([row.segments for row in rows], length, -1)
            batch["attention_mask"] = segment_mask(segments)
            batch["position_ids"] = _pad([row.positions for row in rows], length, 0)
        else:
            batch["attention_mask"] = _pad([[1] * len(row.input_ids) for row in rows], length, 0)
        if images:
            batch["pixel_values"] = torch.stack(images)
        return batch


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


def _pad(rows: Sequence[list[int]], length: int, value: int) -> torch.Tensor:
    """int64[B,length], each row filled up with `value` on the right."""
    return torch.tensor([row + [value] * (length - len(row)) for row in rows], dtype=torch.long)
