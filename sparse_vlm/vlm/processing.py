"""Images and messages → model inputs: chat template, literal text, placeholder tokens."""

import copy
from collections.abc import Collection, Sequence
from typing import Any

from transformers import AutoProcessor, BatchFeature, PreTrainedTokenizerBase, ProcessorMixin
from transformers.processing_utils import MultiModalData

from sparse_vlm.errors import UserError
from sparse_vlm.vlm.hub import auto_map
from sparse_vlm.vlm.image_processor import SparseFormerImageProcessor, flat_images
from sparse_vlm.vlm.language.control_tokens import IMAGE_TOKEN, control_tokens
from sparse_vlm.vlm.language.literal_text import LiteralTokenizer, escape, escape_parts, is_escaped
from sparse_vlm.vlm.modeling import SparseVLMConfig


class SparseVLMProcessor(ProcessorMixin):
    """Texts with one `<image>` per image, and the images -> input_ids, attention_mask, pixel_values.

    Each `<image>` becomes `num_image_tokens` tokens, whatever the size of the image. Messages are literal text:
    `apply_chat_template` escapes the control tokens in them (see `literal_text.py`), and the processor reads escaped
    tokens as their letters. `<image>` is a placeholder if a user's content is a string, which has no other way to
    place an image; in a list of parts it is text.

    Args:
        image_processor: the image processor of the encoder.
        tokenizer: the LLM's tokenizer, with `<image>` in its vocabulary.
        num_image_tokens: number of visual tokens per image.
        chat_template: accepts the content of a message as text or as a list of parts; see
            sparse_vlm/vlm/language/templates.py.
    """

    # The chat template writes the special tokens, in training too. A call may override this.
    text_kwargs = {"add_special_tokens": False}  # noqa: RUF012 (transformers' own convention)

    def __init__(
        self,
        image_processor: SparseFormerImageProcessor,
        tokenizer: PreTrainedTokenizerBase,
        num_image_tokens: int = 49,
        chat_template: str | None = None,
    ) -> None:
        self.num_image_tokens = num_image_tokens
        self.image_token = IMAGE_TOKEN
        self.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        self.auto_map = auto_map("processor")
        tokenizer.padding_side = (
            "left"  # generation continues at the right end of a batch; a tokenizer's file has no such field
        )
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    def __call__(self, images: Any = None, text: Any = None, *others: Any, **options: Any) -> BatchFeature:
        """Encode texts and images, as ProcessorMixin does. Images may be nested, with one list per text."""
        texts = [text] if isinstance(text, str) else text
        if images is not None:
            images = self._flat(self.image_processor.fetch_images(images), texts, options.get("input_data_format"))
        processor = self
        if texts is not None and any(isinstance(one, str) and is_escaped(one) for one in texts):
            processor = copy.copy(self)
            processor.tokenizer = LiteralTokenizer(self.tokenizer)
        return super(SparseVLMProcessor, processor).__call__(images, text, *others, **options)

    def _flat(self, images: Any, texts: Sequence[str] | None, layout: Any) -> list[Any] | None:
        """Return the images as RGB in one list, or None if the lists of all texts are empty."""
        nested = isinstance(images, list) and bool(images) and all(isinstance(part, list) for part in images)
        if nested and texts is not None:
            _check_counts([text.count(self.image_token) for text in texts], [len(part) for part in images])
            if not any(images):
                return None
        return [self.image_processor.process_image(image, layout) for image in flat_images(images)]

    def apply_chat_template(self, conversation: Any, *args: Any, **options: Any) -> Any:
        """Render a conversation, as ProcessorMixin does, with the control tokens in its messages escaped."""
        tokens = control_tokens(self.tokenizer)
        several = bool(conversation) and not isinstance(conversation[0], dict)
        escaped: Any = [_escape(turns, tokens) for turns in conversation] if several else _escape(conversation, tokens)
        return super().apply_chat_template(escaped, *args, **options)

    def replace_image_token(self, image_inputs: dict, image_idx: int, **unused: object) -> str:
        """Return the text that replaces the `image_idx`-th placeholder. Called by transformers."""
        return self.image_token * self.num_image_tokens

    def _get_num_multimodal_tokens(
        self, image_sizes: list[list[int]] | None = None, **unused: object
    ) -> MultiModalData:
        """Return the number of visual tokens per image, for servers that plan before they have the images."""
        if image_sizes is None:
            return MultiModalData()
        count = len(image_sizes)
        return MultiModalData(num_image_tokens=[self.num_image_tokens] * count, num_image_patches=[1] * count)


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
    if isinstance(content, str):
        return escape(content, [token for token in tokens if token != IMAGE_TOKEN or role != "user"])
    if not isinstance(content, list | tuple):
        return content
    texts = [
        place for place, part in enumerate(content) if isinstance(part, dict) and isinstance(part.get("text"), str)
    ]
    escaped = dict(zip(texts, escape_parts([content[place]["text"] for place in texts], tokens), strict=True))
    return [{**part, "text": escaped[place]} if place in escaped else part for place, part in enumerate(content)]


AutoProcessor.register(SparseVLMConfig, SparseVLMProcessor)
