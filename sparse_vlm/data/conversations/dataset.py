"""Conversations and their images as a map-style dataset of tokenized rows and pixel values."""

import logging
import os
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch.utils.data import Dataset

from sparse_vlm.data.conversations.encoding import Row, encode, encode_independent
from sparse_vlm.data.conversations.images import Images
from sparse_vlm.data.conversations.length_limit import LengthLimit, TooLongError
from sparse_vlm.data.conversations.samples import Sample, parse_sample
from sparse_vlm.data.conversations.sources import Source
from sparse_vlm.data.conversations.visual_tokens import VisualTokenCache
from sparse_vlm.encoder.rois import WHOLE_IMAGE
from sparse_vlm.errors import UserError, check_choice, error_context
from sparse_vlm.image_files import decode_image
from sparse_vlm.vlm.language.turns import ChatFormat
from sparse_vlm.vlm.views import Box, View

logger = logging.getLogger(__name__)
BAD_SAMPLE_CHOICES = ("error", "skip")
REASONS_SHOWN = 20
DEFAULT_LIMIT = LengthLimit(2048)


class Drawn(NamedTuple):
    """The index of an item of a `ConversationDataset`, and its number of visual tokens per image."""

    place: int
    tokens: int


class Entry(NamedTuple):
    """A checked sample and its source.

    Attributes:
        source: the origin of the sample.
        sample: the sample.
        length: tokens of its row, if they were counted during the check.
        full_length: the same without the limit.
    """

    source: Source
    sample: Sample
    length: int | None = None
    full_length: int | None = None


class SampleImage(NamedTuple):
    """An image that a sample names. Errors name the sample too."""

    sample: Sample
    images: Images
    name: str

    def check(self) -> None:
        """Check that the image exists, without reading it."""
        with error_context(str(self.sample)):
            self.images.check(self.name)

    def read(self) -> bytes:
        """Return the bytes of the image file."""
        with error_context(str(self.sample)):
            return self.images.read(self.name)

    def open(self) -> Image.Image:
        """Return the image as RGB."""
        with error_context(str(self.sample)):
            return self.images.open(self.name)

    def decode(self, data: bytes) -> Image.Image:
        """Return the image as RGB from the bytes that `read` returned."""
        with error_context(str(self.sample)):
            return decode_image(data, self.name)


class ConversationDataset(Dataset):
    """Tokenized conversations and their images.

    Items are `{"row": Row, "tokens": visual tokens per image, "images": list of float[3,H,W], "views": list of View}`,
    with the indices of the sample's images in the views. With `visual_tokens`, "images" holds the tokens of each view
    instead, float[n,C]. An item is requested by its index, or by a `Drawn` for another number of visual tokens than the
    largest.

    Items have the order of the sources and their records; a weight above 1 repeats its source in rounds.

    Args:
        sources: see `open_sources`.
        chat: tokenizer, template, and the largest number of tokens per image, with which lengths are checked.
        preprocess: PIL image -> float[3,H,W], the preprocessing of the vision encoder.
        model_box: converts a box in an image of the given (width, height) to the coordinates of its preprocessed image;
            None: the vision encoder cannot look at regions, so samples with regions are bad.
        independent_turns: the turns of a sample do not attend to each other (VQA on one image).
        limit: maximum length of a row.
        on_bad_sample: "error" stops at the first bad sample. Texts, lengths and the existence of all images are checked
            here, but image files only when they are read. "skip" reads everything once here, leaves out the bad samples
            and reports how many there are, and why.
        seed: draws the samples of a fractional weight.

    Attributes:
        entries: one per item.
        skipped: a sentence per sample that was left out.
        truncated: a sentence per sample whose row ends at the limit.
        visual_tokens: if set, the source of visual tokens, which replace the images.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        chat: ChatFormat,
        preprocess: Callable[[Image.Image], torch.Tensor],
        *,
        model_box: Callable[[Sequence[float], tuple[int, int]], Box] | None = None,
        independent_turns: bool = False,
        limit: LengthLimit = DEFAULT_LIMIT,
        on_bad_sample: str = "error",
        seed: int = 0,
    ) -> None:
        check_choice("--on_bad_sample", on_bad_sample, BAD_SAMPLE_CHOICES)
        self.chat, self.preprocess, self.model_box = chat, preprocess, model_box
        self._chats = {chat.tokens_per_image: chat}
        self.encode = encode_independent if independent_turns else encode
        self.limit = limit
        self.visual_tokens: VisualTokenCache | None = None
        self.entries: list[Entry] = []
        self.skipped: list[str] = []
        self.truncated: list[str] = []
        for source in sources:
            good = self._checked(source, skip=on_bad_sample == "skip")
            self.truncated += [
                f"{entry.sample} has {entry.full_length} tokens; {entry.length} are kept."
                for entry in good
                if entry.length != entry.full_length
            ]
            self.entries += _weighted(good, source.weight, random.Random(seed))
        total = sum(len(source.records) for source in sources)
        _report(f"Skipped {len(self.skipped)} of {total} samples:", self.skipped)
        _report(f"Truncated {len(self.truncated)} of {total} samples to {limit}:", self.truncated)
        if not self.entries:
            first = f"; the first reason: {self.skipped[0]}" if self.skipped else ""
            raise UserError(f"None of the {total} samples is usable{first}")

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int | Drawn) -> dict[str, Any]:
        place, tokens = index if isinstance(index, Drawn) else (index, self.chat.tokens_per_image)
        entry = self.entries[place]
        row, views = self._row(entry.sample, tokens)
        return {"row": row, "tokens": tokens, **self._visual(entry.source, entry.sample, views)}

    def lengths(self) -> list[int]:
        """Return the number of tokens of each row, without reading any image."""
        return [
            entry.length or len(self._row(entry.sample, self.chat.tokens_per_image)[0].input_ids)
            for entry in self.entries
        ]

    def distinct_images(self, counts: Sequence[int]) -> list[tuple[SampleImage, list[View]]]:
        """Return every image that an item needs, once, with its distinct views; their image indices are all 0.

        Args:
            counts: the numbers of visual tokens per image with which items will be requested.
        """
        found: dict[tuple[int, str], tuple[SampleImage, dict[View, None]]] = {}
        for entry in self.entries:
            sample, images = entry.sample, entry.source.images
            for view in (view for count in counts for view in sample.views(count, self.chat.region_tokens)):
                name = sample.images[view.image]
                known = found.setdefault((id(images), name), (SampleImage(sample, images, name), {}))
                known[1][view._replace(image=0)] = None
        return [(image, list(views)) for image, views in found.values()]

    def _checked(self, source: Source, skip: bool) -> list[Entry]:
        """Return the good samples of a source. Bad samples raise or are added to `skipped`."""

        def check(index: int) -> Entry | UserError:
            try:
                sample = parse_sample(source.records[index], index)
                for name in sample.images:
                    SampleImage(sample, source.images, name).check()
                if sample.regions and self.model_box is None:
                    raise UserError(f"{sample} has regions, at which only a bootstrapped SparseFormer can look.")
                if not skip and self._most_tokens(sample) <= self.limit.tokens:
                    return Entry(source, sample)
                full = self.encode(sample, self.chat)
                row, views = self.limit.fit(full, sample, self.chat)
                if skip:
                    self._visual(source, sample, views)
                return Entry(source, sample, len(row.input_ids), len(full.input_ids))
            except UserError as error:
                return error

        good = []
        with ThreadPoolExecutor(max_workers=os.cpu_count() if skip else 1) as pool:  # decoding releases the GIL
            for outcome in pool.map(check, range(len(source.records))):
                if isinstance(outcome, Entry):
                    good.append(outcome)
                elif skip or isinstance(outcome, TooLongError):
                    self.skipped.append(str(outcome))
                else:
                    pool.shutdown(cancel_futures=True)
                    raise outcome
        return good

    def _most_tokens(self, sample: Sample) -> int:
        """Return an upper bound of the tokens of a row, in a hundredth of the time of counting them.

        A token of text stands for at least one byte. The template's own tokens are counted on a short conversation.
        """
        copies = sum(role == "assistant" for role, _ in sample.turns) if self.encode is encode_independent else 1
        text = sum(len(words.encode("utf-8", "surrogatepass")) + self._turn_tokens for _, words in sample.turns)
        system = sum(len(words.encode("utf-8", "surrogatepass")) for role, words in sample.turns if role == "system")
        repeated = system + self._turn_tokens + len(sample.images) * self.chat.tokens_per_image
        return text + copies * repeated + len(sample.regions) * self.chat.region_tokens

    @cached_property
    def _turn_tokens(self) -> int:
        return len(self.chat.tokens(self.chat.render((("user", "a"), ("assistant", "b")))))

    def _row(self, sample: Sample, tokens: int) -> tuple[Row, list[View]]:
        """Return a sample's row with `tokens` visual tokens per image, and its views; see `LengthLimit.fit`."""
        if tokens not in self._chats:  # kept, because it remembers the control tokens
            self._chats[tokens] = replace(self.chat, tokens_per_image=tokens)
        chat = self._chats[tokens]
        return self.limit.fit(self.encode(sample, chat), sample, chat)

    def _visual(self, source: Source, sample: Sample, views: list[View]) -> dict[str, Any]:
        """Return the "images" and "views" of an item. Only images with a view are read."""
        used = 1 + max((view.image for view in views), default=-1)
        images = [SampleImage(sample, source.images, name) for name in sample.images[:used]]
        if self.visual_tokens is not None:
            files = [image.read() for image in images]
            return {"images": [self.visual_tokens.tokens(files[view.image], view) for view in views], "views": views}
        opened = [image.open() for image in images]
        placed = [self.placed(view, opened[view.image].size, sample) for view in views]
        return {"images": [self.preprocess(image) for image in opened], "views": placed}

    def placed(self, view: View, size: tuple[int, int], sample: Sample) -> View:
        """Convert a view of an image of (width, height) to the coordinates of the preprocessed image.

        Raises:
            UserError: the preprocessing cuts the box off. Names the sample.
        """
        if view.box == WHOLE_IMAGE or self.model_box is None:
            return view
        with error_context(str(sample)):
            return view._replace(box=self.model_box(view.box, size))


def _report(count: str, sentences: Sequence[str]) -> None:
    """Log the count and the first sentences, if there are any."""
    if sentences:
        logger.warning("%s", "\n  ".join([count, *sentences[:REASONS_SHOWN]]))


def _weighted(entries: list[Entry], weight: float, order: random.Random) -> list[Entry]:
    """Repeat the entries by weight: all of them in whole rounds, then a random part of them in their order."""
    rounds, rest = divmod(round(weight * len(entries)), max(1, len(entries)))
    part = sorted(order.sample(range(len(entries)), rest))
    return entries * rounds + [entries[index] for index in part]
