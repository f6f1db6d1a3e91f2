"""Conversations and their images as a map-style dataset of tokenized rows and pixel values."""

import logging
import os
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
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
from sparse_vlm.errors import UserError, check_choice, error_context
from sparse_vlm.image_files import decode_image
from sparse_vlm.vlm.language.turns import ChatFormat

logger = logging.getLogger(__name__)
BAD_SAMPLE_CHOICES = ("error", "skip")
REASONS_SHOWN = 20
DEFAULT_LIMIT = LengthLimit(2048)


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
    """Tokenized conversations and their images. Items: `{"row": Row, "images": list of float[3,H,W]}`.

    Items have the order of the sources and their records; a weight above 1 repeats its source in rounds. With
    `visual_tokens`, the images are float[n,C].

    Args:
        sources: see `open_sources`.
        chat: tokenizer, template, and tokens per image.
        preprocess: PIL image -> float[3,H,W], the preprocessing of the vision encoder.
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
        independent_turns: bool = False,
        limit: LengthLimit = DEFAULT_LIMIT,
        on_bad_sample: str = "error",
        seed: int = 0,
    ) -> None:
        check_choice("--on_bad_sample", on_bad_sample, BAD_SAMPLE_CHOICES)
        self.chat, self.preprocess = chat, preprocess
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

    def __getitem__(self, index: int) -> dict[str, Any]:
        entry = self.entries[index]
        row, names = self._row(entry.sample)
        return {"row": row, "images": self._images(entry.source, entry.sample, names)}

    def lengths(self) -> list[int]:
        """Return the number of tokens of each row, without reading any image."""
        return [entry.length or len(self._row(entry.sample)[0].input_ids) for entry in self.entries]

    def distinct_images(self) -> list[SampleImage]:
        """Return every image that an item needs, once."""
        found = {
            (id(e.source.images), name): SampleImage(e.sample, e.source.images, name)
            for e in self.entries
            for name in e.sample.images
        }
        return list(found.values())

    def _checked(self, source: Source, skip: bool) -> list[Entry]:
        """Return the good samples of a source. Bad samples raise or are added to `skipped`."""

        def check(index: int) -> Entry | UserError:
            try:
                sample = parse_sample(source.records[index], index)
                for name in sample.images:
                    SampleImage(sample, source.images, name).check()
                if not skip and self._most_tokens(sample) <= self.limit.tokens:
                    return Entry(source, sample)
                full = self.encode(sample, self.chat)
                row, names = self.limit.fit(full, sample, self.chat)
                if skip:
                    self._images(source, sample, names)
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
        return text + copies * repeated

    @cached_property
    def _turn_tokens(self) -> int:
        return len(self.chat.tokens(self.chat.render((("user", "a"), ("assistant", "b")))))

    def _row(self, sample: Sample) -> tuple[Row, Sequence[str]]:
        return self.limit.fit(self.encode(sample, self.chat), sample, self.chat)

    def _images(self, source: Source, sample: Sample, names: Sequence[str]) -> list[torch.Tensor]:
        return [self._image(SampleImage(sample, source.images, name)) for name in names]

    def _image(self, image: SampleImage) -> torch.Tensor:
        if self.visual_tokens is not None:
            return self.visual_tokens.tokens(image.read())
        return self.preprocess(image.open())


def _report(count: str, sentences: Sequence[str]) -> None:
    """Log the count and the first sentences, if there are any."""
    if sentences:
        logger.warning("%s", "\n  ".join([count, *sentences[:REASONS_SHOWN]]))


def _weighted(entries: list[Entry], weight: float, order: random.Random) -> list[Entry]:
    """Repeat the entries by weight: all of them in whole rounds, then a random part of them in their order."""
    rounds, rest = divmod(round(weight * len(entries)), max(1, len(entries)))
    part = sorted(order.sample(range(len(entries)), rest))
    return entries * rounds + [entries[index] for index in part]
