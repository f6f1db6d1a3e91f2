"""Images and messages → model inputs: chat template, literal text, placeholder tokens."""

import copy
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from PIL import Image
from transformers import AutoProcessor, BatchFeature, PreTrainedTokenizerBase, ProcessorMixin
from transformers.processing_utils import MultiModalData

from sparse_vlm.errors import UserError
from sparse_vlm.vlm.hub import auto_map
from sparse_vlm.vlm.image_processor import SparseFormerImageProcessor, flat_images
from sparse_vlm.vlm.language.control_tokens import IMAGE_TOKEN, REGION_TOKEN, control_tokens
from sparse_vlm.vlm.language.literal_text import LiteralTokenizer, escape, escape_parts, is_escaped
from sparse_vlm.vlm.modeling import SparseVLMConfig
from sparse_vlm.vlm.views import Box, View, flat_boxes, pack_views, parse_box, tokens_per_image, views_of_texts


class SparseVLMProcessor(ProcessorMixin):
    """Texts with one `<image>` per image, and the images -> input_ids, attention_mask, pixel_values.

    Each `<image>` becomes `num_image_tokens` tokens, whatever the size of the image, unless a call requests another
    number. Each `<region>` becomes `region_tokens` tokens, which start inside a box of the image before it. With
    either, the output has `views` as well, int64[I, R, 5] (see views.py).

    Messages are literal text: `apply_chat_template` escapes the control tokens in them (see `literal_text.py`), and the
    processor reads escaped tokens as their letters. `<image>` and `<region>` are placeholders if a user's content is a
    string, which has no other way to place an image. In a list of parts they are text, and a part {"type": "region",
    "box": [x1, y1, x2, y2]} places a region.

    Args:
        image_processor: the image processor of the encoder.
        tokenizer: the LLM's tokenizer, with `<image>` in its vocabulary.
        num_image_tokens: number of visual tokens per image.
        chat_template: accepts the content of a message as text or as a list of parts; see
            sparse_vlm/vlm/language/templates.py.
        region_tokens: number of visual tokens per region.
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
        fewest_image_tokens: int = 1,
        fixed_tokens: str | None = None,
    ) -> None:
        self.num_image_tokens = num_image_tokens
        self.region_tokens = region_tokens
        self.fewest_image_tokens = fewest_image_tokens
        self.fixed_tokens = fixed_tokens
        self.image_token = IMAGE_TOKEN
        self.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        self.auto_map = auto_map("processor")
        tokenizer.padding_side = (
            "left"  # generation continues at the right end of a batch; a tokenizer's file has no such field
        )
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    def __call__(
        self,
        images: Any = None,
        text: Any = None,
        *others: Any,
        visual_tokens: int | Sequence[int] | None = None,
        regions: Sequence[Any] | None = None,
        image_regions: Sequence[Sequence[float] | str] | None = None,
        **options: Any,
    ) -> BatchFeature:
        """Encode texts and images, as ProcessorMixin does.

        Special tokens are not added unless `add_special_tokens` is True: the chat template writes them.

        Args:
            images: may be nested, with one list per text.
            text: a text or a list of texts.
            others: arguments of ProcessorMixin.
            visual_tokens: number of visual tokens of each image, or one number for all; None: `num_image_tokens`.
            regions: the boxes of all `<region>` in order, (x1, y1, x2, y2) with [0, 1] from edge to edge of the image;
                or a list of them for each text.
            image_regions: boxes of regions that follow each image without a `<region>`, for servers whose prompts
                cannot have one. A box may be text, "x1,y1,x2,y2": vLLM takes no nested lists.
            options: options of ProcessorMixin.

        Raises:
            UserError: texts, images, numbers and boxes do not fit together, or a box is empty or leaves its image.
        """
        for name in ("num_image_tokens", "fewest_image_tokens", "fixed_tokens"):
            if name in options:  # servers pass the arguments of a request to `from_pretrained` as well
                raise UserError(f"{name} belongs to the model and cannot be requested: use visual_tokens.")
        texts = [text] if isinstance(text, str) else text
        if images is not None:
            images = self._flat(self.image_processor.fetch_images(images), texts, options.get("input_data_format"))
        if texts is not None and not all(isinstance(one, str) for one in texts):
            raise UserError("`text` must be a string or a list of strings.")
        counts = tokens_per_image(visual_tokens, len(images or ()), self.num_image_tokens)
        after_each = flat_boxes([parse_box(box) if isinstance(box, str) else box for box in image_regions or ()])
        views = self._views(texts, images or (), counts, flat_boxes(regions), after_each)
        changed = views != [View(image, self.num_image_tokens) for image in range(len(views))]
        if changed:
            self._check_free(counts)
        processor = copy.copy(self)
        processor._counts = [count + self.region_tokens * len(after_each) for count in counts]
        if texts is not None and any(map(is_escaped, texts)):
            processor.tokenizer = LiteralTokenizer(self.tokenizer)
        if "add_special_tokens" not in options.get("text_kwargs", {}):
            options.setdefault("add_special_tokens", False)
        encoded = super(SparseVLMProcessor, processor).__call__(images, text, *others, **options)
        if changed or (visual_tokens is not None and views):
            encoded["views"] = pack_views(views)
        return encoded

    def _views(
        self,
        texts: Sequence[str] | None,
        images: Sequence[Image.Image],
        counts: Sequence[int],
        boxes: Sequence[Sequence[float]],
        after_each: Sequence[Sequence[float]],
    ) -> list[View]:
        """Return the view of each placeholder, or of each image if there is no text, with the regions after each."""

        def model_box(image: int, box: Sequence[float]) -> Box:
            return self.image_processor.model_box(box, images[image].size)

        texts = [self.image_token] * len(images) if texts is None else texts
        if after_each:
            if boxes or any(REGION_TOKEN in text for text in texts):
                raise UserError(f"image_regions are for texts without {REGION_TOKEN}: leave out one of the two.")
            with_regions = self.image_token + REGION_TOKEN * len(after_each)
            texts = [text.replace(self.image_token, with_regions) for text in texts]
            boxes = [*after_each] * len(images)
        return views_of_texts(texts, counts, boxes, self.region_tokens, model_box)

    def _check_free(self, counts: Sequence[int]) -> None:
        """Raise UserError if the vision tower cannot have these numbers of tokens, before a server runs the model."""
        if self.fixed_tokens:
            raise UserError(self.fixed_tokens)
        if counts and min(counts) < self.fewest_image_tokens:
            raise UserError(
                f"This model keeps CLS, so an image needs at least {self.fewest_image_tokens} visual tokens, got "
                f"{min(counts)}."
            )

    def _flat(self, images: Any, texts: Sequence[str] | None, layout: Any) -> list[Any] | None:
        """Return the images as RGB in one list, or None if the lists of all texts are empty."""
        nested = isinstance(images, list) and bool(images) and all(isinstance(part, list) for part in images)
        if nested and texts is not None:
            _check_counts([text.count(self.image_token) for text in texts], [len(part) for part in images])
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
        escaped: Any = [_escape(turns, tokens) for turns in conversation] if several else _escape(conversation, tokens)
        if boxes := boxes_of(conversation):
            processor_kwargs = {"regions": boxes, **(processor_kwargs or {})}
        if options.get("tokenize", False) or boxes:
            options["processor_kwargs"] = processor_kwargs
        return super().apply_chat_template(escaped, *args, **options)

    def replace_image_token(self, image_inputs: dict, image_idx: int, **unused: object) -> str:
        """Return the text that replaces the `image_idx`-th placeholder. Called by transformers."""
        return self.image_token * self._counts[image_idx]

    def get_text_with_replacements(self, *args: Any, **options: Any) -> tuple[list[str], list[dict[str, Any]]]:
        """Replace the placeholders of images, as ProcessorMixin does, and those of regions."""
        texts, offsets = super().get_text_with_replacements(*args, **options)
        tokens = self.image_token * self.region_tokens
        return [text.replace(REGION_TOKEN, tokens) for text in texts], offsets

    def _get_num_multimodal_tokens(
        self, image_sizes: list[list[int]] | None = None, visual_tokens: int | None = None, **unused: object
    ) -> MultiModalData:
        """Return the number of visual tokens per image, for servers that plan before they have the images."""
        if image_sizes is None:
            return MultiModalData()
        counts = tokens_per_image(visual_tokens, len(image_sizes), self.num_image_tokens)
        return MultiModalData(num_image_tokens=counts, num_image_patches=[1] * len(counts))


def boxes_of(conversation: Any) -> list[Sequence[float]]:
    """Return the boxes of the parts of type "region" of a conversation, or of several, in order.

    Raises:
        UserError: such a part has no box, or it stands before the images of its turn.
    """
    boxes = []
    for turn in getattr(conversation, "messages", conversation):
        if not isinstance(turn, dict):
            boxes += boxes_of(turn)
            continue
        content = turn.get("content")
        parts = [part for part in content if isinstance(part, dict)] if isinstance(content, list | tuple) else []
        boxes += [_box(part) for part in parts if part.get("type") == "region"]
        kinds = [part["type"] for part in parts if part.get("type") in ("image", "region")]
        if kinds[:1] == ["region"] and "image" in kinds:  # templates move the images of a turn before its text
            raise UserError("A region is part of the image before it, but one comes before the images of its message.")
    return boxes


def _box(part: Mapping[str, Any]) -> Sequence[float]:
    if part.get("box") is None:
        raise UserError('A part of type "region" needs its box: {"type": "region", "box": [x1, y1, x2, y2]}.')
    return part["box"]


def _check_counts(placeholders: Sequence[int], images: Sequence[int]) -> None:
    if len(placeholders) != len(images):
        raise UserError(
            f"There are {len(placeholders)} texts and {len(images)} lists of images: each text needs its own list."
        )
    for number, (wanted, given) in enumerate(zip(placeholders, images, strict=True), start=1):
        if wanted != given:
            raise UserError(f"Text {number} has {wanted} {IMAGE_TOKEN}, but its list has {given} images.")


def _escape(turns: Any, tokens: Collection[str]) -> list[dict[str, Any]]:
    """Escape the control tokens in the text of a conversation's turns."""
    return [
        {**turn, "content": _escape_content(turn["content"], tokens, turn.get("role"))} if "content" in turn else turn
        for turn in getattr(turns, "messages", turns)
    ]


def _escape_content(content: Any, tokens: Collection[str], role: Any) -> Any:
    placeholders = (IMAGE_TOKEN, REGION_TOKEN)
    tokens = [*tokens, REGION_TOKEN]
    if isinstance(content, str):
        return escape(content, [token for token in tokens if token not in placeholders or role != "user"])
    if not isinstance(content, list | tuple):
        return content
    texts = [
        place for place, part in enumerate(content) if isinstance(part, dict) and isinstance(part.get("text"), str)
    ]
    escaped = dict(zip(texts, escape_parts([content[place]["text"] for place in texts], tokens), strict=True))
    return [
        {**part, "text": escaped[place]} if place in escaped else _region_as_text(content, place)
        for place, part in enumerate(content)
    ]


def _region_as_text(parts: Sequence[Any], place: int) -> Any:
    """Return a part, or the placeholder of a part of type "region", since chat templates do not know the type.

    Text after the images and regions with which a turn begins starts on a line of its own, as it does after images.
    """
    kinds = [part.get("type") if isinstance(part, dict) else None for part in parts[: place + 2]]
    if kinds[place] != "region":
        return parts[place]
    begins = set(kinds[:place]) <= {"image", "region"}
    return {"type": "text", "text": REGION_TOKEN + "\n" * (begins and kinds[place + 1 :] == ["text"])}


AutoProcessor.register(SparseVLMConfig, SparseVLMProcessor)
