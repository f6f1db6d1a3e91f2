"""Conversations and their images as a map-style dataset of tokenised rows and pixel values."""

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

from sparse_vlm.data.conversations.encoding import ChatFormat, Row, Sample, encode, encode_independent, parse_sample
from sparse_vlm.data.conversations.length_limit import LengthLimit, TooLongError
from sparse_vlm.data.conversations.sources import Images, Source
from sparse_vlm.data.conversations.visual_tokens import VisualTokenCache
from sparse_vlm.errors import UserError, unknown_choice

logger = logging.getLogger(__name__)
BAD_SAMPLE_CHOICES = ("error", "skip")
REASONS_SHOWN = 20
DEFAULT_LIMIT = LengthLimit(2048)


class Entry(NamedTuple):
    """A checked sample and where it comes from; if they were counted while it was checked, how many tokens its row has,
    and how many it would have without the limit."""

    source: Source
    sample: Sample
    length: int | None = None
    full_length: int | None = None


class Picture(NamedTuple):
    """One that a sample names, and where it lies."""

    sample: Sample
    images: Images
    name: str

    def act(self, action: Callable[[str], Any]) -> Any:
        """What `action`, a method of `images`, makes of it; its error names the sample."""
        try:
            return action(self.name)
        except UserError as error:
            raise UserError(f"Sample {self.sample.id}: {error}") from error


class ConversationDataset(Dataset):
    """Items: `{"row": Row, "images": list of float[3,H,W]}`, in the order of the sources and their records, a weight
    above 1 as rounds of its source one after the other. With `visual_tokens` the images are float[n,C].

    Args:
        sources: see `open_sources`.
        chat: tokenizer, template and image width.
        preprocess: PIL image -> float[3,H,W], the vision encoder's own preprocessing.
        independent_turns: the turns of a sample do not see each other (VQA on one image).
        limit: of a row's length.
        on_bad_sample: "error" stops at the first bad sample; the text, the length and the existence of all images are
            checked here, damaged image files when they are read. "skip" reads everything once here, leaves the bad
            samples out, and reports how many and why.
        seed: draws the part of a source that a broken weight asks for.

    Attributes:
        entries: one per item.
        skipped: a sentence per sample that was left out.
        truncated: a sentence per sample whose row ends at the limit.
        visual_tokens: when set, where the pictures' tokens are read in the place of the pictures.

    Raises:
        UserError: with the sample's name, and when no good sample is left.
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
        if on_bad_sample not in BAD_SAMPLE_CHOICES:
            raise unknown_choice("--on_bad_sample", on_bad_sample, BAD_SAMPLE_CHOICES)
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
                f"Sample {entry.sample.id} has {entry.full_length} tokens; {entry.length} stay."
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

    def pictures(self) -> list[Picture]:
        """Every picture that an item needs, once."""
        found = {
            (id(e.source.images), name): Picture(e.sample, e.source.images, name)
            for e in self.entries
            for name in e.sample.images
        }
        return list(found.values())

    def _checked(self, source: Source, skip: bool) -> list[Entry]:
        """The source's good samples; each bad one raises, or is added to `skipped`."""

        def check(index: int) -> Entry | UserError:
            try:
                sample = parse_sample(source.records[index], index)
                for name in sample.images:
                    Picture(sample, source.images, name).act(source.images.check)
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
        with ThreadPoolExecutor(max_workers=os.cpu_count() if skip else 1) as pool:  # decoding lets other threads run
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
        """Return an upper bound of a row's tokens, which takes a hundredth of the time of counting them.

        A token of text stands for a byte at least; a template's own tokens are counted on one short conversation.
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
        return [self._image(Picture(sample, source.images, name)) for name in names]

    def _image(self, picture: Picture) -> torch.Tensor:
        if self.visual_tokens is not None:
            return self.visual_tokens.tokens(picture.act(picture.images.read))
        return self.preprocess(picture.act(picture.images.open))


def _report(count: str, sentences: Sequence[str]) -> None:
    """Logs the count and the first of the sentences, if there are any."""
    for line in [count, *(f"  {sentence}" for sentence in sentences[:REASONS_SHOWN])] if sentences else []:
        logger.warning("%s", line)


def _weighted(entries: list[Entry], weight: float, order: random.Random) -> list[Entry]:
    """Each entry as often as the weight says: all of them in whole rounds, then a random part in their order."""
    rounds, rest = divmod(round(weight * len(entries)), max(1, len(entries)))
    part = sorted(order.sample(range(len(entries)), rest))
    return entries * rounds + [entries[index] for index in part]
