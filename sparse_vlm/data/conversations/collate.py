"""Rows -> a batch for a causal language model of transformers, with logits at the predicting positions only."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from sparse_vlm.data.conversations.encoding import IGNORE, Row
from sparse_vlm.errors import UserError, check_choice
from sparse_vlm.vlm.views import View, pack_views

PACKINGS = ("longest", "one row")


class Visual(NamedTuple):
    """The images of a sample and its views, as in an item of `ConversationDataset`."""

    images: Sequence[torch.Tensor]
    views: Sequence[View]


class ConversationCollator:
    """Collate the items of a `ConversationDataset` into a batch, with images in the order of their placeholders.

    The batch holds `input_ids` int64[B,L]; `logits_to_keep` bool[B,L], true at the P predicting positions, the only
    ones where logits are computed; `labels` = `shift_labels` int64[P] (transformers' loss takes the latter as already
    shifted); either `pixel_values` float[I,3,H,W] of the I > 0 images, or `visual_tokens` float[T,C] of all their views
    in a row; `views` int64[V,6] (`pack_views`) if some view of the images is not the model's default; and, depending on
    the rows,
      - dependent turns: `attention_mask` int64[B,L], padded on the right;
      - independent turns: `attention_mask` bool[B,1,L,L] (query, key) and `position_ids` int64[B,L];
      - packed rows: `position_ids` int64[B,L] and `use_cache` False. Without a mask and a cache, transformers' masks
        separate conversations where the positions restart; so do its flash attention kernels, in a single row.

    Args:
        pad_token_id: token of the padding, to which nothing attends.
        independent_turns: as in the dataset.
        packing: None: one row per sample. "longest": as few rows as possible, of the length of the longest sample. "one
            row": a single row without padding, which flash attention requires; other implementations pay for the
            square of its length.
        default_tokens: the model's own number of visual tokens per image; None: unknown, so that batches with images
            always have views.
        image_key: the model's argument for the images: "pixel_values" or "visual_tokens".
        blank_image: (image_token_id, shape of an image or of one cached token), or None. If given, a batch without
            images gets one of zeros with the samples' number of tokens, to which nothing attends. The vision tower then
            takes part in every step, with zero gradient, so that processes do not wait for each other forever. A single
            process does not need it.
    """

    def __init__(
        self,
        pad_token_id: int,
        *,
        independent_turns: bool = False,
        packing: str | None = None,
        default_tokens: int | None = None,
        image_key: str = "pixel_values",
        blank_image: tuple[int, torch.Size] | None = None,
    ) -> None:
        if packing is not None:
            check_choice("packing", packing, PACKINGS)
            if independent_turns:
                raise UserError(
                    "--packing and --independent_turns exclude each other: both set the attention of a row."
                )
        self.pad_token_id, self.independent_turns, self.blank_image = pad_token_id, independent_turns, blank_image
        self.packing, self.image_key, self.default_tokens = packing, image_key, default_tokens

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        rows: list[Row] = [example["row"] for example in examples]
        visual = [Visual(example["images"], example["views"]) for example in examples]
        blank: list[int] = []  # the tokens of the blank image
        if not any(part.images for part in visual) and self.blank_image is not None:
            image_token_id, shape = self.blank_image
            width = examples[0]["tokens"]  # another number would leave other weights of the tower without a gradient
            blank = [image_token_id] * width
            cached = self.image_key == "visual_tokens"
            visual[0] = Visual([torch.zeros(width, *shape) if cached else torch.zeros(shape)], [View(0, width)])
        if self.packing is not None:
            rows, visual, blank = self._packed(rows, visual, blank)
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
            **self._attention(rows, length),
        }
        return batch | self.stacked(visual)

    def stacked(self, parts: Sequence[Visual]) -> dict[str, torch.Tensor]:
        """Return the model's arguments for the images of several samples; none without images."""
        images = [image for part in parts for image in part.images]
        if not images:
            return {}
        if self.image_key == "visual_tokens":
            return {"visual_tokens": torch.cat(images)}
        views: list[View] = []
        first = 0  # index of the sample's first image in the batch
        for part in parts:
            views += [view._replace(image=first + view.image) for view in part.views]
            first += len(part.images)
        default = self.default_tokens
        usual = default is not None and views == [View(image, default) for image in range(len(images))]
        return {"pixel_values": torch.stack(images)} | ({} if usual else {"views": pack_views(views)})

    def _packed(
        self, rows: list[Row], visual: list[Visual], blank: list[int]
    ) -> tuple[list[Row], list[Visual], list[int]]:
        """Join the rows into groups and reorder the images. The blank image's tokens become a row like the others."""
        if blank:
            size = len(blank)
            rows = [*rows, Row(blank, [IGNORE] * size, list(range(size)), [0] * size)]
            visual = [*visual, Visual([], [])]
        lengths = [len(row.input_ids) for row in rows]
        groups = pack(lengths, max(lengths) if self.packing == "longest" else sum(lengths))
        order = [index for group in groups for index in group]
        return [_joined([rows[index] for index in group]) for group in groups], [visual[i] for i in order], []

    def _attention(self, rows: list[Row], length: int) -> dict[str, Any]:
        """Return the arguments that decide which positions attend to which."""
        if self.packing is not None:
            return {"position_ids": _pad([row.positions for row in rows], length, 0), "use_cache": False}
        if self.independent_turns:
            segments = _pad([row.segments for row in rows], length, -1)
            positions = _pad([row.positions for row in rows], length, 0)
            return {"attention_mask": segment_mask(segments), "position_ids": positions}
        return {"attention_mask": _pad([[1] * len(row.input_ids) for row in rows], length, 0)}


def pack(lengths: Sequence[int], width: int) -> list[list[int]]:
    """Group items so that no group is longer than `width`, by first fit with the longest items first.

    Args:
        lengths: of the items, none above `width`.
        width: maximum total length of a group.

    Returns:
        The indices of the items in each group.
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
    """Return the attention mask of independent turns.

    A query attends to itself and to the earlier positions of segment 0 and of its own segment.

    Args:
        segments: int64[B,L]; 0: the shared prefix, k > 0: turn k, -1: padding. Padding attends to itself, because the
            softmax of a query without any key is not defined.

    Returns:
        bool[B,1,L,L] (query, key).
    """
    query, key = segments[:, None, :, None], segments[:, None, None, :]
    length = segments.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    attends = causal & (query >= 0) & ((key == 0) | (key == query))
    return attends | torch.eye(length, dtype=torch.bool)


def _joined(rows: Sequence[Row]) -> Row:
    """Concatenate rows. Each row keeps its positions."""
    lists = zip(*((row.input_ids, row.targets, row.positions, row.segments) for row in rows), strict=True)
    return Row(*([value for part in parts for value in part] for parts in lists))


def _pad(rows: Sequence[list[int]], length: int, value: int) -> torch.Tensor:
    """Pad rows with `value` on the right to int64[B,length]."""
    return torch.tensor([row + [value] * (length - len(row)) for row in rows], dtype=torch.long)
