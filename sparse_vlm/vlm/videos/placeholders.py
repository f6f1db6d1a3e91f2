"""`<video>` in prompts: each becomes the image tokens of the video's frames, so that no tokenizer needs a new token."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import repeat
from typing import Any

from transformers import BatchFeature, ProcessorMixin

from sparse_vlm.errors import UserError
from sparse_vlm.vlm.language.control_tokens import IMAGE_TOKEN, REGION_TOKEN, VIDEO_TOKEN
from sparse_vlm.vlm.videos.clips import flat_videos, is_video
from sparse_vlm.vlm.videos.processor import SparseFormerVideoProcessor
from sparse_vlm.vlm.views import PLACEHOLDER, check_counts, check_videos, frames_as_text

IMAGE, VIDEO = 1, 2  # transformers' numbers of modalities
KINDS = {IMAGE_TOKEN: "image", VIDEO_TOKEN: "video", REGION_TOKEN: "region"}
VISUAL = tuple(KINDS.values())
SOURCE = "source"  # where a part of text keeps the video that it stands for


class VideoPlaceholders(ProcessorMixin):
    """A ProcessorMixin whose `<video>` become frames.

    Attributes:
        video_processor: reads the videos.
        num_image_tokens: number of visual tokens of a frame, unless a call requests another number.
        region_tokens: number of visual tokens of a region.
    """

    video_processor: SparseFormerVideoProcessor
    image_token_id: int
    num_image_tokens: int
    region_tokens: int
    # During a call:
    _frame_tokens = 0  # visual tokens of a frame
    _timestamps = False  # whether the time of each frame is written before it
    _modalities: Sequence[Sequence[int]] | None = None  # of each visual token of each text

    @classmethod
    def get_attributes(cls) -> list[str]:
        """Return the parts that have files of their own. Directories from before videos have no video processor."""
        return ["image_processor", "tokenizer"]

    @property
    def model_input_names(self) -> list[str]:
        """Names of the model's inputs, for transformers."""
        return [*super().model_input_names, *self.video_processor.model_input_names, "views"]

    def validate_inputs(
        self, images: Any = None, text: Any = None, videos: Any = None, audio: Any = None, **options: Any
    ) -> None:
        """Check that texts, images and videos fit together, as ProcessorMixin does.

        Raises:
            UserError: another number of `<video>` than of videos.
        """
        if text is None and images is None and videos is not None:
            return
        texts = [one for one in text or () if isinstance(one, str)]
        if text is not None:
            check_videos(texts, 0 if videos is None else len(flat_videos(videos)))
        if len(texts) == len(text or ()):
            text = text and [one.replace(VIDEO_TOKEN, "") for one in texts]
        super().validate_inputs(images=images, text=text, audio=audio, **options)

    def _process_videos(self, videos: Any, **options: Any) -> tuple[BatchFeature, list[str]]:
        processed = self.video_processor(videos, **{**options, "return_metadata": True})
        count = len(processed["video_frames"])
        return processed, [self.replace_video_token(processed, video_idx=place) for place in range(count)]

    def replace_video_token(self, video_inputs: Any, video_idx: int, **unused: object) -> str:
        """Return the text that replaces the `video_idx`-th `<video>`. Called by transformers."""
        frames, tokens = int(video_inputs["video_frames"][video_idx]), IMAGE_TOKEN * self._frame_tokens
        times = video_inputs["video_metadata"][video_idx].timestamps if self._timestamps else None
        return frames_as_text(tokens, frames, times)

    def get_text_with_replacements(  # type: ignore[override]
        self,
        text: Sequence[str],
        images_replacements: Sequence[str] = (),
        videos_replacements: Sequence[str] = (),
        audio_replacements: Sequence[str] = (),
    ) -> tuple[list[str], list[list[dict[str, Any]]]]:
        """Replace the placeholders of images and videos, as ProcessorMixin does, and those of regions.

        Returns:
            the texts, and where the replacements of each text stand, in the form of ProcessorMixin: transformers needs
            those of all kinds to find the answers in an expanded text.
        """
        images, videos = map(_image_tokens, (images_replacements, videos_replacements))
        self._modalities = [list(self._modalities_of(one, images, videos)) for one in text]
        left = {"image": iter(images_replacements), "video": iter(videos_replacements)}
        left["region"] = repeat(IMAGE_TOKEN * self.region_tokens)
        replaced = [_replaced(one, left) for one in text]
        return [expanded for expanded, _ in replaced], [places for _, places in replaced]

    def _modalities_of(self, text: str, images: Iterator[int], videos: Iterator[int]) -> Iterator[int]:
        for placeholder in PLACEHOLDER.findall(text):
            if placeholder == VIDEO_TOKEN:
                yield from repeat(VIDEO, next(videos))
            else:
                yield from repeat(IMAGE, self.region_tokens if placeholder == REGION_TOKEN else next(images, 1))

    def create_mm_token_type_ids(self, input_ids: Any) -> list[list[int]]:
        """Return the modality of each token: 0 for text, 1 for images and 2 for videos."""
        rows = [list(map(int, row)) for row in input_ids]
        kinds: Iterable[Any] = repeat(None, len(rows)) if self._modalities is None else self._modalities
        found = []
        for row, known in zip(rows, kinds, strict=True):
            remaining = repeat(IMAGE) if known is None else iter(known)
            found.append([next(remaining) if token == self.image_token_id else 0 for token in row])
        return found

    def _check_special_mm_tokens(self, text: list[str], text_inputs: Any, modalities: list[str]) -> None:
        """Check that no image token was truncated; the frames of videos have image tokens."""
        super()._check_special_mm_tokens(text, text_inputs, [one for one in modalities if one != "video"])

    def _multimodal_inputs_from_conversations(
        self, conversations: Any, *args: Any, **options: Any
    ) -> tuple[list, list, list, dict]:
        images, _, audios, others = super()._multimodal_inputs_from_conversations(conversations, *args, **options)
        videos = [
            [part[SOURCE] for turn in turns for part in _parts(turn) if part.get(SOURCE) is not None]
            for turns in conversations
        ]
        return images, videos, audios, others


def videos_of_texts(videos: Any, texts: Sequence[str] | None) -> list[Any] | None:
    """Return the videos in one list, or None if the lists of all texts are empty."""
    nested = isinstance(videos, list) and bool(videos) and all(isinstance(part, list) for part in videos)
    if not nested or texts is None or is_video(videos) or any(map(is_video, videos)):
        return flat_videos(videos)
    per_text = [flat_videos([part]) if part else [] for part in videos]
    check_counts([text.count(VIDEO_TOKEN) for text in texts], [len(part) for part in per_text], VIDEO_TOKEN)
    return [video for part in per_text for video in part] or None


def _replaced(text: str, replacements: Mapping[str, Iterator[str]]) -> tuple[str, list[dict[str, Any]]]:
    """Replace the placeholders of a text by the next replacement of their kind; return where each stands."""
    places: list[dict[str, Any]] = []
    expanded, last = "", 0
    for match in PLACEHOLDER.finditer(text):
        kind = KINDS[match[0]]
        replacement = next(replacements[kind], match[0])
        expanded += text[last : match.start()] + replacement
        last = match.end()
        new_span = (len(expanded) - len(replacement), len(expanded))
        places.append({"type": kind, "span": match.span(), "new_span": new_span})
        places[-1] |= {"text": match[0], "replacement": replacement}
    return expanded + text[last:], places


def _image_tokens(replacements: Sequence[str]) -> Iterator[int]:
    return iter([text.count(IMAGE_TOKEN) for text in replacements])


def _parts(turn: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    content = turn.get("content")
    return [part for part in content if isinstance(part, Mapping)] if isinstance(content, list | tuple) else []


def visual_parts_first(parts: Sequence[Any]) -> Sequence[Any]:
    """Move the images and videos of a turn before its text if it has a video, unless there is text between them.

    Chat templates do so for images. They know no regions, so an image takes the regions after it along: first before
    the videos, or alone before a text between it and a video.
    """
    kinds = [part.get("type") if isinstance(part, Mapping) else None for part in parts]
    if "video" not in kinds:
        return parts
    visual = [place for place, kind in enumerate(kinds) if kind in VISUAL]
    images = _images_and_regions(kinds)
    if _adjacent(visual):
        moved = images + [place for place in visual if place not in images]
    elif _adjacent(images):
        moved = images
    else:
        return parts
    return [*(parts[place] for place in moved), *(part for place, part in enumerate(parts) if place not in moved)]


def _images_and_regions(kinds: Sequence[str | None]) -> list[int]:
    """Return the places of images, and of the regions that follow them."""
    places: list[int] = []
    before: str | None = None
    for place, kind in enumerate(kinds):
        if kind == "image" or (kind == "region" and before == "image"):
            places.append(place)
        before = before if kind == "region" else kind
    return places


def _adjacent(places: Sequence[int]) -> bool:
    return bool(places) and places[-1] - places[0] + 1 == len(places)


def video_as_text(part: Mapping[str, Any]) -> dict[str, Any]:
    """Return the placeholder of a part of type "video" as text, since chat templates of images do not know the type.

    Raises:
        UserError: the part names several videos.
    """
    sources = [part[key] for key in ("video", "url", "path") if part.get(key) is not None]
    if len(sources) > 1:
        raise UserError(
            'A part of type "video" names one video, by "video", "url" or "path", but this one names several.'
        )
    return {"type": "text", "text": f"{VIDEO_TOKEN}\n", SOURCE: sources[0] if sources else None}
