"""A LLaVA data file and its image folder as a map-style dataset of tokenised rows and pixel values."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import Dataset

from sparse_vlm.data.conversations import ChatFormat, Row, Sample, encode, encode_independent, parse_sample
from sparse_vlm.data.images import open_image
from sparse_vlm.errors import UserError, unknown_choice

logger = logging.getLogger(__name__)
BAD_SAMPLE_CHOICES = ("error", "skip")


class ConversationDataset(Dataset):
    """Items: `{"row": Row, "pixel_values": float[3,H,W] or None}`, in the order of the file.

    Args:
        records: LLaVA samples, see `read_samples`.
        image_folder: what "image" is relative to.
        chat: tokenizer, template and image width.
        preprocess: PIL image -> float[3,H,W], the vision encoder's own preprocessing.
        independent_turns: the turns of a sample do not see each other (VQA on one image).
        max_length: longer rows are bad samples; nothing is ever cut.
        on_bad_sample: "error" stops at the first bad sample; the text and the existence of all images are checked
            here, damaged image files when they are read. "skip" reads everything once here, leaves the bad
            samples out, and reports how many and why.

    Raises:
        UserError: with the sample's name, and when no good sample is left.
    """

    def __init__(
        self,
        records: list[dict[str, Any]],
        image_folder: str | Path,
        chat: ChatFormat,
        preprocess: Callable[[Image.Image], torch.Tensor],
        *,
        independent_turns: bool = False,
        max_length: int = 2048,
        on_bad_sample: str = "error",
    ) -> None:
        if on_bad_sample not in BAD_SAMPLE_CHOICES:
            raise unknown_choice("--on_bad_sample", on_bad_sample, BAD_SAMPLE_CHOICES)
        self.image_folder, self.chat, self.preprocess = Path(image_folder), chat, preprocess
        self.encode = encode_independent if independent_turns else encode
        self.max_length = max_length
        self.samples: list[Sample] = []
        self.skipped: list[str] = []
        for index, record in enumerate(records):
            try:
                sample = parse_sample(record, index)
                self._check_files(sample)
                if on_bad_sample == "skip":
                    self._load(sample)
            except UserError as error:
                if on_bad_sample == "error":
                    raise
                self.skipped.append(str(error))
            else:
                self.samples.append(sample)
        if self.skipped:
            logger.warning("Skipped %d of %d samples:", len(self.skipped), len(records))
            for reason in self.skipped:
                logger.warning("  %s", reason)
        if not self.samples:
            raise UserError(f"None of the {len(records)} samples is usable; the first reason: {self.skipped[0]}")

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row, pixel_values = self._load(self.samples[index])
        return {"row": row, "pixel_values": pixel_values}

    def lengths(self) -> list[int]:
        """Tokens of each row, without reading any image."""
        return [len(self.encode(sample, self.chat).input_ids) for sample in self.samples]

    def _load(self, sample: Sample) -> tuple[Row, torch.Tensor | None]:
        row = self.encode(sample, self.chat)
        if len(row.input_ids) > self.max_length:
            raise UserError(
                f"Sample {sample.id} has {len(row.input_ids)} tokens, more than --model_max_length {self.max_length}. "
                "Raise the limit, shorten the sample, or use --on_bad_sample skip."
            )
        if sample.image is None:
            return row, None
        try:
            return row, self.preprocess(open_image(self.image_folder / sample.image))
        except UserError as error:
            raise UserError(f"Sample {sample.id}: {error}") from error

    def _check_files(self, sample: Sample) -> None:
        if sample.image is not None and not (self.image_folder / sample.image).is_file():
            raise UserError(
                f"Sample {sample.id}: the image {self.image_folder / sample.image} does not exist. "
                "Check --image_folder, or use --on_bad_sample skip."
            )
