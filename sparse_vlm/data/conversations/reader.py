"""Reads samples: the check before training, and the items of a data set."""

import hashlib
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any, NamedTuple

import torch
from PIL import Image

from sparse_vlm.data.conversations.findings import Finding, Known
from sparse_vlm.data.conversations.images import SampleImage, file_stamp
from sparse_vlm.data.conversations.length_limit import Rows, TooLongError
from sparse_vlm.data.conversations.samples import Sample, parse_sample
from sparse_vlm.data.conversations.sources import Source
from sparse_vlm.data.conversations.videos import VideoSettings, VisualFile, files_of
from sparse_vlm.data.conversations.visual_tokens import VisualTokenCache
from sparse_vlm.encoder.rois import WHOLE_IMAGE
from sparse_vlm.errors import UserError, error_context
from sparse_vlm.vlm.views import Box, View


class Depth(NamedTuple):
    """What a check covers besides the layout of a sample and its length.

    Attributes:
        existence: the images exist.
        lengths: the tokens are counted, even if the row surely fits.
        images: the images are read, and regions lie in what the model sees of them.
    """

    existence: bool
    lengths: bool
    images: bool


class SampleReader:
    """Reads the samples of sources.

    Args:
        rows: makes their rows.
        preprocess, model_box, no_regions, videos: see `ConversationDataset`.

    Attributes:
        visual_tokens: if set, the source of visual tokens, which replace the images.
    """

    def __init__(
        self,
        rows: Rows,
        preprocess: Callable[[Image.Image], torch.Tensor],
        model_box: Callable[[Sequence[float], tuple[int, int]], Box] | None,
        no_regions: str | None,
        videos: VideoSettings,
    ) -> None:
        self.videos = videos
        self.rows, self.preprocess, self.model_box, self.no_regions = rows, preprocess, model_box, no_regions
        self.visual_tokens: VisualTokenCache | None = None

    def sample(self, source: Source, index: int) -> Sample:
        """Return the sample of a record."""
        sample = parse_sample(source.records[index], index)
        if sample.regions and self.no_regions is not None:
            raise UserError(f"{sample} has regions, {self.no_regions}.")
        return sample

    def check_existence(self, source: Source, sample: Sample) -> None:
        """Check that the images and videos of a sample exist, without reading them."""
        for name in sample.images:
            SampleImage(sample, source.images, name).check()
        with error_context(str(sample)):
            for name in sample.videos:
                source.images.video(name)

    def item(self, source: Source, sample: Sample, tokens: int) -> dict[str, Any]:
        """Return an item of `ConversationDataset`. Only images with a view are read."""
        sample = self.videos.shown(source.images, sample)
        row, views = self.rows.row(sample, tokens)
        files = _used(source, sample, views)
        if self.visual_tokens is not None:
            contents = [content for file in files for content in file.contents()]
            cached = [self.visual_tokens.tokens(contents[view.image], view) for view in views]
            return {"row": row, "tokens": tokens, "images": cached, "views": views}
        opened = [image for file in files for image in file.opened()]
        placed = [self.placed(view, opened[view.image].size, sample) for view in views]
        return {"row": row, "tokens": tokens, "images": [self.preprocess(image) for image in opened], "views": placed}

    def placed(self, view: View, size: tuple[int, int], sample: Sample) -> View:
        """Convert a view of an image of (width, height) to the coordinates of the preprocessed image.

        Raises:
            UserError: the preprocessing cuts the box off. Names the sample.
        """
        if view.box == WHOLE_IMAGE or self.model_box is None:
            return view
        with error_context(str(sample)):
            return view._replace(box=self.model_box(view.box, size))

    def check(self, source: Source, index: int, depth: Depth, known: Known) -> Finding:
        """Check the sample of a record.

        Args:
            source, index: the record.
            depth: what to check.
            known: what earlier checks of this depth found, by key.
        """
        try:
            sample = self.sample(source, index)
            if depth.existence:
                self.check_existence(source, sample)
            if not (depth.lengths or depth.images) and self.rows.surely_fits(sample):
                return Finding()
            key = _key(source, sample, depth)
        except UserError as error:
            return Finding(problem=str(error))
        if key is not None and key in known:
            return known[key]
        return self._measure(source, sample, depth)._replace(key=key)

    def _measure(self, source: Source, sample: Sample, depth: Depth) -> Finding:
        """Do the part of a check that takes time."""
        try:
            sample = self.videos.shown(source.images, sample)
            row, views, full_length = self.rows.measured(sample)
            if depth.images:
                sizes = [image.size for file in _used(source, sample, views) for image in file.opened()]
                for view in views:
                    self.placed(view, sizes[view.image], sample)
        except UserError as error:
            return Finding(problem=str(error), too_long=isinstance(error, TooLongError))
        return Finding(len(row.input_ids), full_length)

    def rules(self, depth: Depth) -> dict[str, Any]:
        """Return all that findings depend on besides the samples, their images and `model_box`, as JSON values."""
        chat, limit = self.rows.chat, self.rows.limit
        tokenizer: Any = chat.tokenizer
        return {
            "format": 1,
            "versions": {name: version(name) for name in ("sparse-vlm", "pillow", "tokenizers", "transformers")},
            "depth": list(depth),
            "tokenizer": _hash(tokenizer.backend_tokenizer.to_str()),
            "special_tokens": repr(sorted(tokenizer.special_tokens_map.items())),
            "control_tokens": chat.control_tokens,
            "chat_template": chat.chat_template,
            "image_token_id": chat.image_token_id,
            "tokens_per_image": chat.tokens_per_image,
            "region_tokens": chat.region_tokens,
            "plain": chat.plain,
            "independent_turns": self.rows.independent_turns,
            "limit": [limit.tokens, limit.too_long, limit.of_model],
            "no_regions": self.no_regions,
            "videos": repr(self.videos),
            "frame_tokens": chat.tokens_per_frame,
        }


def _used(source: Source, sample: Sample, views: Sequence[View]) -> list[VisualFile]:
    """Return the sample's files up to the last image with a view: truncation leaves out the others."""
    return files_of(source.images, sample, 1 + max((view.image for view in views), default=-1))


def _key(source: Source, sample: Sample, depth: Depth) -> str | None:
    """Return the key of a finding: a hash of the sample, and the stamps of its videos and, if they are read, images."""
    stamps = [source.images.stamp(name) for name in sample.images] if depth.images else []
    with error_context(str(sample)):
        stamps += [file_stamp(source.images.video(name)) for name in sample.videos]
    return None if None in stamps else _hash(repr((sample, stamps)))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
