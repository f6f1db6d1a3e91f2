"""Images, videos and messages → model inputs: chat template, literal text, placeholder tokens."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from PIL import Image
from transformers import AutoProcessor, BatchFeature, PreTrainedTokenizerBase
from transformers.processing_utils import MultiModalData

from sparse_vlm.errors import UserError
from sparse_vlm.hub.transfer import upload
from sparse_vlm.vlm.hub.code import auto_map, write_code
from sparse_vlm.vlm.image_processor import SparseFormerImageProcessor, flat_images
from sparse_vlm.vlm.language.control_tokens import IMAGE_TOKEN, REGION_TOKEN, VIDEO_TOKEN, control_tokens
from sparse_vlm.vlm.language.literal_text import LiteralTokenizer, is_escaped
from sparse_vlm.vlm.language.messages import boxes_of, escape_messages
from sparse_vlm.vlm.modeling import SparseVLMConfig
from sparse_vlm.vlm.videos.placeholders import VideoPlaceholders, videos_of_texts
from sparse_vlm.vlm.videos.processor import SparseFormerVideoProcessor, VideoOptions
from sparse_vlm.vlm.views import (
    Box,
    View,
    check_count,
    check_counts,
    check_requested,
    flat_boxes,
    pack_by_image,
    pack_views,
    parse_box,
    tokens_per_image,
    views_of_texts,
)

IGNORED = -100  # labels with this value do not count in the losses of torch and transformers


class ModelInputs(BatchFeature):
    """A processor's output. Labels that a program puts into it leave image tokens out of the loss.

    Such labels are often a copy of `input_ids`, as in TRL's trainers, but image tokens are not text to learn: the
    model receives visual tokens in their place.
    """

    image_token_id: int | None = None

    def __setitem__(self, name: str, value: Any) -> None:
        if name == "labels" and isinstance(value, torch.Tensor) and self.image_token_id is not None:
            value = value.masked_fill(value == self.image_token_id, IGNORED)
        super().__setitem__(name, value)


class SparseVLMProcessor(VideoPlaceholders):
    """Texts with one `<image>` per image and one `<video>` per video -> input_ids, attention_mask, pixel_values.

    Each `<image>` becomes `num_image_tokens` tokens, whatever the size of the image, unless a call requests another
    number. Each `<region>` becomes `region_tokens` tokens, which start inside a box of the image before it. With
    either, the output has `views` as well, int64[I, R, 5] (see `pack_by_image`).

    Each `<video>` becomes the `<image>` tokens of its frames, `frame_tokens` each, so that a language model needs no
    token for videos. The output then has `pixel_values_videos`, `video_frames` (see `SparseFormerVideoProcessor`) and
    `views`, int64[V, 6] (see `pack_views`), where frames are counted after the images.

    Messages are literal text: `apply_chat_template` escapes the control tokens in them (see `literal_text.py`), and the
    processor reads escaped tokens as their letters. `<image>` and `<region>` are placeholders if a user's content is a
    string, which has no other way to place an image, and so is `<video>`. In a list of parts they are text, and a part
    {"type": "region", "box": [x1, y1, x2, y2]} places a region, {"type": "video", "path": …} a video.

    Args:
        image_processor: the image processor of the encoder.
        tokenizer: the LLM's tokenizer, with `<image>` in its vocabulary.
        num_image_tokens: number of visual tokens per image.
        chat_template: accepts the content of a message as text or as a list of parts; see
            sparse_vlm/vlm/language/templates.py.
        region_tokens: number of visual tokens per region.
        frame_tokens: number of visual tokens per frame of a video; None: `num_image_tokens`.
        video_processor: its settings, see `SparseFormerVideoProcessor`; None: those of the image processor.
        fewest_image_tokens: the smallest number of visual tokens that a call may request for an image.
        fixed_tokens: why the vision tower takes neither another number of tokens nor regions, as a sentence; None: it
            does.
    """

    _counts: Sequence[int] = ()  # visual tokens of each image and the regions that follow it, during a call

    def __init__(
        self,
        image_processor: SparseFormerImageProcessor,
        tokenizer: PreTrainedTokenizerBase,
        num_image_tokens: int = 49,
        chat_template: str | None = None,
        region_tokens: int = 9,
        frame_tokens: int | None = None,
        video_processor: Mapping[str, Any] | None = None,
        fewest_image_tokens: int = 1,
        fixed_tokens: str | None = None,
    ) -> None:
        self.fewest_image_tokens, self.fixed_tokens = fewest_image_tokens, fixed_tokens
        self.num_image_tokens = num_image_tokens
        self.region_tokens = region_tokens
        self.frame_tokens = frame_tokens
        self.image_token, self.video_token = IMAGE_TOKEN, VIDEO_TOKEN
        token_id: Any = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)  # a list, for a list of texts
        self.image_token_id: int = token_id
        self.video_token_id: int = token_id
        self.video_processor = (
            SparseFormerVideoProcessor.from_image_processor(image_processor)
            if video_processor is None
            else SparseFormerVideoProcessor(**video_processor)
        )
        self.auto_map = auto_map("processor")
        tokenizer.padding_side = (
            "left"  # generation continues at the right end of a batch; a tokenizer's file has no such field
        )
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    def __call__(
        self,
        images: Any = None,
        text: Any = None,
        videos: Any = None,
        *others: Any,
        visual_tokens: int | Sequence[int] | None = None,
        regions: Sequence[Any] | None = None,
        frame_tokens: int | None = None,
        timestamps: bool = False,
        image_regions: Sequence[Sequence[float] | str] | None = None,
        **options: Any,
    ) -> ModelInputs:
        """Encode texts, images and videos, as ProcessorMixin does.

        Special tokens are not added unless `add_special_tokens` is True: the chat template writes them.

        Args:
            images: may be nested, with one list per text.
            text: a text or a list of texts.
            videos: may be nested, with one list per text; see `read_clip` for what a video may be.
            others: arguments of ProcessorMixin.
            visual_tokens: number of visual tokens of each image, or one number for all; None: `num_image_tokens`.
            regions: the boxes of all `<region>` in order, (x1, y1, x2, y2) with [0, 1] from edge to edge of the image;
                or a list of them for each text.
            frame_tokens: number of visual tokens of each frame of a video; None: the processor's own.
            timestamps: write the time of each frame before it, as in "0.5s: ".
            image_regions: boxes of regions that follow each image without a `<region>`, for servers whose prompts
                cannot have one. A box may be text, "x1,y1,x2,y2": vLLM takes no nested lists.
            options: options of ProcessorMixin and of the video processor, e.g. `fps` and `max_frames`.

        Raises:
            UserError: texts, images, videos, numbers and boxes do not fit together, a box is empty or leaves its image,
                or a video cannot be read.
        """
        for name in ("num_image_tokens", "fewest_image_tokens", "fixed_tokens"):
            if name in options:  # servers pass the arguments of a request to `from_pretrained` as well
                raise UserError(f"{name} belongs to the model and cannot be requested: use visual_tokens.")
        texts = [text] if isinstance(text, str) else text
        if images is not None:
            images = self._flat(self.image_processor.fetch_images(images), texts, options.get("input_data_format"))
        if videos is not None:  # transformers' own check of these numbers has messages of several lines
            VideoOptions(options.get("fps"), options.get("max_frames"), frame_tokens)
            videos = videos_of_texts(videos, texts)
        processor = copy.copy(self)
        counts = tokens_per_image(visual_tokens, len(images or ()), self.num_image_tokens)
        after_each = flat_boxes([parse_box(box) if isinstance(box, str) else box for box in image_regions or ()])
        processor._counts = [count + self.region_tokens * len(after_each) for count in counts]
        processor._frame_tokens = self.tokens_per_frame(frame_tokens)
        processor._timestamps = timestamps
        if texts is not None and any(isinstance(one, str) and is_escaped(one) for one in texts):
            processor.tokenizer = LiteralTokenizer(self.tokenizer)
        boxes, views = flat_boxes(regions), []
        if after_each and (videos is not None or boxes or any(REGION_TOKEN in str(one) for one in texts or ())):
            raise UserError(f"image_regions are for texts without {REGION_TOKEN} and videos: leave out one of the two.")
        if videos is None and all(isinstance(one, str) for one in texts or ()):
            views = self._views(texts, images or (), boxes, counts=counts, after_each=after_each)
            changed = views != [View(image, self.num_image_tokens) for image in range(len(views))]
            if changed:
                check_requested(counts, self.fewest_image_tokens, self.fixed_tokens)
            elif visual_tokens is None:
                views = []
        if "add_special_tokens" not in options.get("text_kwargs", {}):
            options.setdefault("add_special_tokens", False)
        called = super(SparseVLMProcessor, processor).__call__(images, text, videos, *others, **options)
        if videos is not None:  # the number of their frames is known now
            views = processor._views(texts, images or (), boxes, called["video_frames"], counts)
        encoded = ModelInputs(called.data)
        encoded.image_token_id = self.image_token_id
        if views:
            encoded["views"] = pack_by_image(views) if videos is None else pack_views(views)
        return encoded

    def tokens_per_frame(self, asked: int | None = None) -> int:
        """Return the number of visual tokens of each frame of a video: `asked`, or by default the processor's own."""
        tokens = next(count for count in (asked, self.frame_tokens, self.num_image_tokens) if count is not None)
        check_count(tokens)
        return tokens

    def _views(
        self,
        texts: Sequence[str] | None,
        images: Sequence[Image.Image],
        boxes: Sequence[Sequence[float]],
        frames: Sequence[int] = (),
        counts: Sequence[int] = (),
        after_each: Sequence[Sequence[float]] = (),
    ) -> list[View]:
        """Return the view of each placeholder, or of each image and each frame if there is no text.

        Args:
            texts, images: those of the call.
            boxes: the box of each `<region>`.
            frames: number of frames of each video.
            counts: number of visual tokens of each image.
            after_each: boxes of the regions that follow each image.
        """

        def model_box(image: int, box: Sequence[float]) -> Box:
            return self.image_processor.model_box(box, images[image].size)

        texts = [self.image_token] * len(images) + [self.video_token] * len(frames) if texts is None else texts
        if after_each:
            with_regions = self.image_token + REGION_TOKEN * len(after_each)
            texts, boxes = [text.replace(self.image_token, with_regions) for text in texts], [*after_each] * len(images)
        lengths = [int(length) for length in frames]
        return views_of_texts(texts, counts, boxes, self.region_tokens, model_box, lengths, self._frame_tokens)

    def _flat(self, images: Any, texts: Sequence[str] | None, layout: Any) -> list[Any] | None:
        """Return the images as RGB in one list, or None if the lists of all texts are empty."""
        nested = isinstance(images, list) and bool(images) and all(isinstance(part, list) for part in images)
        if nested and texts is not None:
            check_counts([text.count(self.image_token) for text in texts], [len(part) for part in images])
            if not any(images):
                return None
        return [self.image_processor.process_image(image, layout) for image in flat_images(images)]

    def apply_chat_template(
        self, conversation: Any, *args: Any, processor_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> Any:
        """Render a conversation, as ProcessorMixin does, with the control tokens in its messages escaped.

        With `tokenize=True` the boxes of its regions are passed on to the processor; otherwise pass
        `regions=boxes_of(conversation)` to the processor with the text.
        """
        tokens = control_tokens(self.tokenizer)
        several = bool(conversation) and not isinstance(conversation[0], dict)
        escaped: Any = (
            [escape_messages(turns, tokens) for turns in conversation]
            if several
            else escape_messages(conversation, tokens)
        )
        if boxes := boxes_of(conversation):
            processor_kwargs = {"regions": boxes, **(processor_kwargs or {})}
        if options.get("tokenize", False) or boxes:
            options["processor_kwargs"] = processor_kwargs
        return super().apply_chat_template(escaped, *args, **options)

    def save_pretrained(self, save_directory: str | Path, push_to_hub: bool = False, **options: Any) -> Any:
        """Save as transformers does, with its `options`, and add the code for `trust_remote_code`."""
        write_code(save_directory)
        return super().save_pretrained(str(save_directory), push_to_hub, **options)

    def push_to_hub(self, repo_id: str, *, tags: Sequence[str] | None = None, **options: Any) -> Any:
        """Upload the processor, as transformers does with its `options`, without a card; see `upload`.

        The card of the repository is the model's, which names its `tags`.
        """
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return upload(folder, repo_id, **{"commit_message": "Upload processor", **options})

    def replace_image_token(self, image_inputs: dict, image_idx: int, **unused: object) -> str:
        """Return the text that replaces the `image_idx`-th placeholder. Called by transformers."""
        return self.image_token * self._counts[image_idx]

    def _get_num_multimodal_tokens(
        self, image_sizes: list[list[int]] | None = None, visual_tokens: int | None = None, **unused: object
    ) -> MultiModalData:
        """Return the number of visual tokens per image, for vLLM, which plans before it has the images.

        There is none for videos, so that vLLM offers no videos: their tokens are those of images, which it cannot
        tell apart.

        Args:
            image_sizes: (height, width) of each image.
            visual_tokens: as in a call.
        """
        if image_sizes is None:
            return MultiModalData()
        counts = tokens_per_image(visual_tokens, len(image_sizes), self.num_image_tokens)
        return MultiModalData(num_image_tokens=counts, num_image_patches=[1] * len(counts))


AutoProcessor.register(SparseVLMConfig, SparseVLMProcessor)
