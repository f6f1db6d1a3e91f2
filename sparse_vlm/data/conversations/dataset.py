"""Conversations and their images as a map-style dataset of tokenized rows and pixel values."""

import logging
import random
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch.utils.data import Dataset

from sparse_vlm.data.bad_items import CHOICES, BadItems
from sparse_vlm.data.conversations.findings import Checks, Finding, Known
from sparse_vlm.data.conversations.length_limit import LengthLimit, Rows, TooLongError
from sparse_vlm.data.conversations.reader import Depth, SampleReader
from sparse_vlm.data.conversations.samples import Sample, parse_sample
from sparse_vlm.data.conversations.sources import Source
from sparse_vlm.data.conversations.videos import VideoSettings, VisualFile, files_of
from sparse_vlm.data.substitutes import Substitutes
from sparse_vlm.errors import UserError, check_choice
from sparse_vlm.vlm.language.turns import ChatFormat
from sparse_vlm.vlm.views import Box, View

logger = logging.getLogger(__name__)
CHECK_CHOICES = ("before", "while_reading")
REASONS_SHOWN = 20
DEFAULT_LIMIT = LengthLimit(2048)


class Drawn(NamedTuple):
    """The index of an item of a `ConversationDataset`, and its number of visual tokens per image."""

    place: int
    tokens: int


class Entry(NamedTuple):
    """A sample of a source.

    Attributes:
        source: the origin of the sample.
        place: index of its record.
        length: tokens of its row, if they were counted during the check.
        full_length: the same without the limit.
    """

    source: Source
    place: int
    length: int | None = None
    full_length: int | None = None

    @property
    def sample(self) -> Sample:
        """The sample, which is parsed at each use: a record is smaller, and no process needs all samples."""
        return parse_sample(self.source.records[self.place], self.place)


class BadSamples(BadItems):
    """The policy for bad samples that are met in training. Too long ones have a policy of their own."""

    def __init__(self, policy: str) -> None:
        super().__init__(policy, "--on_bad_sample", "samples", "bad")

    def report(self, error: UserError) -> None:
        if self.policy == "error" and not isinstance(error, TooLongError):
            raise error
        self.log(error)


class ConversationDataset(Dataset):
    """Tokenized conversations and their images.

    Items are `{"row": Row, "tokens": visual tokens per image, "images": list of float[3,H,W], "views": list of View}`,
    with the indices of the sample's images in the views. With `reader.visual_tokens`, "images" holds the tokens of each
    view instead, float[n,C]. An item is requested by its index, or by a `Drawn` for another number of visual tokens
    than the largest.

    Items have the order of the sources and their records; a weight above 1 repeats its source in rounds.

    Args:
        sources: see `open_sources`.
        chat: tokenizer, template, and the largest number of tokens per image, with which lengths are checked.
        preprocess: PIL image -> float[3,H,W], the preprocessing of the vision encoder.
        model_box: converts a box in an image of the given (width, height) to the coordinates of its preprocessed image;
            None: the vision encoder cannot look at regions, so samples with regions are bad.
        no_regions: why samples with regions are bad all the same; None: they are not.
        videos: how videos are shown; None: as `VideoSettings` does by default.
        independent_turns: the turns of a sample do not attend to each other (VQA on one image).
        limit: maximum length of a row.
        on_bad_sample: "error" stops at the first bad sample, "skip" goes on without it.
        check_samples: "before": all samples are checked here. With "error", these are texts, lengths and the existence
            of all images; with "skip", everything is read once, and bad samples are left out and reported.
            "while_reading": samples are checked when they are read, and with "skip" others replace bad ones; see
            `Substitutes`.
        count_lengths: count the tokens of all samples here; bad texts are then found here too.
        checks: performs the checks.
        seed: draws the samples of a fractional weight, and substitutes.

    Attributes:
        entries: one per item.
        reader: reads them.
        skipped: a sentence per sample that was left out.
        truncated: a sentence per sample whose row is known to end at the limit.
        substitutes: replace bad samples with check_samples "while_reading"; else None.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        chat: ChatFormat,
        preprocess: Callable[[Image.Image], torch.Tensor],
        *,
        model_box: Callable[[Sequence[float], tuple[int, int]], Box] | None = None,
        no_regions: str | None = None,
        videos: VideoSettings | None = None,
        independent_turns: bool = False,
        limit: LengthLimit = DEFAULT_LIMIT,
        on_bad_sample: str = "error",
        check_samples: str = "before",
        count_lengths: bool = False,
        checks: Checks | None = None,
        seed: int = 0,
    ) -> None:
        check_choice("--on_bad_sample", on_bad_sample, CHOICES)
        check_choice("--check_samples", check_samples, CHECK_CHOICES)
        if model_box is None:
            no_regions = "at which only a bootstrapped SparseFormer can look"
        videos = videos or VideoSettings()
        rows = Rows(chat, limit, independent_turns=independent_turns, max_frames=videos.sampling.max_frames)
        self.chat, self.seed, self.reader = chat, seed, SampleReader(rows, preprocess, model_box, no_regions, videos)
        before, skip = check_samples == "before", on_bad_sample == "skip"
        depth = Depth(before, count_lengths or (before and skip), before and skip)
        places = [(source, index) for source in sources for index in range(len(source.records))]
        findings = [Finding()] * len(places)
        if before or count_lengths:
            rules, check = self.reader.rules(depth), partial(_check, self.reader, places, depth)
            findings = (checks or Checks()).run(check, len(places), rules, errors=not skip, images=depth.images)
        self.skipped = [finding.problem for finding in findings if finding.problem is not None]
        self.truncated: list[str] = []
        self.entries: list[Entry] = []
        first = 0  # place of the source's first record
        for source in sources:
            found = findings[first : first + len(source.records)]
            good = [Entry(source, i, f.length, f.full_length) for i, f in enumerate(found) if f.problem is None]
            self.truncated += [
                f"{entry.sample} has {entry.full_length} tokens; {entry.length} are kept."
                for entry in good
                if entry.length != entry.full_length
            ]
            self.entries += _weighted(good, source.weight, random.Random(seed))
            first += len(source.records)
        _report(f"Skipped {len(self.skipped)} of {len(places)} samples:", self.skipped)
        _report(f"Truncated {len(self.truncated)} of {len(places)} samples to {limit}:", self.truncated)
        if not self.entries:
            reason = f"; the first reason: {self.skipped[0]}" if self.skipped else ""
            raise UserError(f"None of the {len(places)} samples is usable{reason}")
        self.substitutes = None if before else Substitutes(len(self.entries), BadSamples(on_bad_sample))

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int | Drawn) -> dict[str, Any]:
        place, tokens = index if isinstance(index, Drawn) else (index, self.chat.tokens_per_image)
        if self.substitutes is None:
            entry = self.entries[place]
            return self.reader.item(entry.source, entry.sample, tokens)
        return self.substitutes.read(place, partial(self._checked_item, tokens=tokens), self.seed)[1]

    def _checked_item(self, place: int, tokens: int) -> dict[str, Any]:
        """Return an item whose sample has not been checked. Whether it is bad does not depend on `tokens`."""
        entry = self.entries[place]
        sample = self.reader.sample(entry.source, entry.place)
        self.reader.check_existence(entry.source, sample)
        if tokens != self.chat.tokens_per_image and not self.reader.rows.surely_fits(sample):
            self.reader.rows.measured(self.reader.videos.shown(entry.source.images, sample))
        return self.reader.item(entry.source, sample, tokens)

    def lengths(self) -> list[int]:
        """Return the number of tokens of each row, without reading any image."""
        rows = self.reader.rows
        return [entry.length or len(rows.measured(self._shown(entry))[0].input_ids) for entry in self.entries]

    def _shown(self, entry: Entry) -> Sample:
        """Return the sample of an entry, with the frames of its videos."""
        return self.reader.videos.shown(entry.source.images, entry.sample)

    def distinct_files(self, counts: Sequence[int]) -> list[tuple[VisualFile, list[View]]]:
        """Return every image and video that an item needs, once, with its distinct views. Their image indices are 0, or
        the place among the shown frames of the video.

        Args:
            counts: the numbers of visual tokens per image with which items will be requested.
        """
        found: dict[Hashable, tuple[VisualFile, dict[View, None]]] = {}
        for entry in self.entries:
            sample, images = self._shown(entry), entry.source.images
            files = [(file, place) for file in files_of(images, sample) for place in range(file.size)]
            sizes = self.chat.region_tokens, self.chat.tokens_per_frame
            for view in (view for count in counts for view in sample.views(count, *sizes)):
                file, place = files[view.image]
                known = found.setdefault((id(images), file.key), (file, {}))
                known[1][view._replace(image=place)] = None
        return [(file, list(views)) for file, views in found.values()]


def _check(
    reader: SampleReader, places: Sequence[tuple[Source, int]], depth: Depth, place: int, known: Known
) -> Finding:
    """A `Check` of the samples at `places`."""
    source, index = places[place]
    return reader.check(source, index, depth, known)


def _report(count: str, sentences: Sequence[str]) -> None:
    """Log the count and the first sentences, if there are any."""
    if sentences:
        logger.warning("%s", "\n  ".join([count, *sentences[:REASONS_SHOWN]]))


def _weighted(entries: list[Entry], weight: float, order: random.Random) -> list[Entry]:
    """Repeat the entries by weight: all of them in whole rounds, then a random part of them in their order."""
    rounds, rest = divmod(round(weight * len(entries)), max(1, len(entries)))
    part = sorted(order.sample(range(len(entries)), rest))
    return entries * rounds + [entries[index] for index in part]
