"""Pictures and messages → model inputs: image processor, placeholder tokens, chat template."""

import base64
import binascii
import copy
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import jinja2
from PIL import Image
from transformers import AutoImageProcessor, AutoProcessor, BatchFeature, PreTrainedTokenizerBase, ProcessorMixin
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import PILImageResampling, SizeDict
from transformers.processing_utils import MultiModalData

from sparse_vlm.encoder.canvas import ASPECTS, preparation
from sparse_vlm.encoder.images import AnyImage, to_rgb
from sparse_vlm.encoder.preprocessing import CLIP_MEAN, CLIP_STD, Preprocessing
from sparse_vlm.errors import UserError, one_line, unknown_choice
from sparse_vlm.literal_text import LiteralTokenizer, control_tokens, escape, escape_parts, is_escaped
from sparse_vlm.vlm.modeling import SparseVLMConfig
from sparse_vlm.vlm.portable import auto_map
from sparse_vlm.vlm.templates import CHAT_TEMPLATES
from sparse_vlm.vlm.vision import SparseFormerVisionConfig

IMAGE_TOKEN = "<image>"
RESAMPLING = {"bilinear": PILImageResampling.BILINEAR, "bicubic": PILImageResampling.BICUBIC}

# Put before a chat template that prints a message's content as text: makes text of lists of parts first.
PARTS_TO_TEXT = """\
{%- set prepared = namespace(messages=[]) -%}
{%- for message in messages -%}
{%- if message['content'] is iterable and message['content'] is not string -%}
{%- set content = namespace(text='') -%}
{%- for part in message['content'] -%}
{%- set content.text = content.text + ('<image>\n' if part['type'] == 'image' else part['text']) -%}
{%- endfor -%}
{%- set prepared.messages = prepared.messages + [dict(message, content=content.text)] -%}
{%- else -%}
{%- set prepared.messages = prepared.messages + [message] -%}
{%- endif -%}
{%- endfor -%}
{%- set messages = prepared.messages %}"""


class SparseFormerImageProcessor(PilBackend):
    """`encoder.transform` in transformers' clothes: the same numbers to the last bit, CLIP's names in the JSON file.

    Takes what `sparse_vlm.encoder.images.to_rgb` takes, files, http(s) addresses, data: URLs, and lists of them.

    Args:
        aspect: "crop": the middle square; "native": the whole picture on a canvas (`sparse_vlm.encoder.canvas`), for a
            vision model of the same aspect.
        **settings: CLIP's, in transformers' names.

    Raises:
        UserError: another aspect.
    """

    resample = PILImageResampling.BICUBIC
    image_mean = CLIP_MEAN
    image_std = CLIP_STD
    size = {"shortest_edge": 224}  # noqa: RUF012 (transformers' own convention)
    crop_size = {"height": 224, "width": 224}  # noqa: RUF012
    default_to_square = False
    do_resize = True
    do_center_crop = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True

    def __init__(self, aspect: str = "crop", **settings: Any) -> None:
        super().__init__(**settings)
        if aspect not in ASPECTS:
            raise unknown_choice("aspect", aspect, ASPECTS)
        self.aspect = aspect

    @classmethod
    def from_preprocessing(cls, preprocessing: Preprocessing, aspect: str = "crop") -> "SparseFormerImageProcessor":
        """The image processor that does what `preprocessing` says."""
        side = preprocessing.resize
        return cls(
            aspect,
            size={"height": side, "width": side} if preprocessing.resize_mode == "squash" else {"shortest_edge": side},
            crop_size={"height": preprocessing.crop, "width": preprocessing.crop},
            image_mean=list(preprocessing.mean),
            image_std=list(preprocessing.std),
            resample=RESAMPLING[preprocessing.interpolation],
        )

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Images for files, http(s) addresses and data: URLs, nested as they are; transformers' own drops transparency.

        Raises:
            UserError: one cannot be read.
        """
        if isinstance(image_url_or_urls, list | tuple):
            return [self.fetch_images(source) for source in image_url_or_urls]
        return _open(image_url_or_urls) if isinstance(image_url_or_urls, str) else image_url_or_urls

    def _prepare_images_structure(self, images: Any, expected_ndims: int = 3) -> Any:
        return flat_images(self.fetch_images(images))

    def process_image(  # type: ignore[override]
        self, image: AnyImage, input_data_format: Any = None, **unused: object
    ) -> Image.Image:
        """One image as RGB. `unused` are transformers' settings of later steps."""
        layout = None if input_data_format is None else str(getattr(input_data_format, "value", input_data_format))
        return to_rgb(image, layout=layout)

    def _preprocess(  # type: ignore[override]
        self,
        images: list[Image.Image],
        *,
        size: SizeDict,
        crop_size: SizeDict,
        image_mean: tuple[float, float, float],
        image_std: tuple[float, float, float],
        resample: int,
        do_resize: bool,
        do_center_crop: bool,
        do_rescale: bool,
        do_normalize: bool,
        return_tensors: str | None = None,
        **unused: object,
    ) -> BatchFeature:
        if not (do_resize and do_center_crop and do_rescale and do_normalize):
            raise UserError(
                "An encoder's preprocessing always resizes, crops, rescales and normalises: no do_* is False."
            )
        interpolations = {int(number): name for name, number in RESAMPLING.items()}
        preprocessing = Preprocessing(
            size.shortest_edge or size["height"],
            crop_size["height"],
            image_mean,
            image_std,
            interpolations.get(resample, str(resample)),
            "shortest" if size.shortest_edge else "squash",
        )
        prepare = preparation(preprocessing, self.aspect)
        return BatchFeature({"pixel_values": [prepare(image) for image in images]}, tensor_type=return_tensors)


def flat_images(images: Any) -> list[AnyImage]:
    """The images of any nesting of lists, and of [B, …] arrays of them, in their order.

    Raises:
        UserError: there is none, or something is not an image.
    """
    flat = _flatten(images)
    if not flat:
        raise UserError("The list of images is empty. Leave images out where the text has none.")
    return flat


def _flatten(images: Any) -> list[AnyImage]:
    if isinstance(images, list | tuple):
        return [image for part in images for image in _flatten(part)]
    if isinstance(images, Image.Image) or getattr(images, "ndim", 0) in (2, 3):
        return [images]
    if getattr(images, "ndim", 0) == 4:
        return list(images)
    raise UserError(f"An image must be a PIL image, an array or a tensor, not {type(images).__name__}.")


def _open(source: str) -> Image.Image:
    """The image in a file, at an http(s) address, in a data: URL or in base64 letters."""
    shown = source if len(source) < 100 else f"{source[:97]}…"
    try:
        if source.startswith(("http://", "https://")):
            data = httpx.get(source, follow_redirects=True).raise_for_status().content
        elif os.path.isfile(source):
            data = Path(source).read_bytes()
        else:
            data = base64.b64decode(source.partition(",")[2] if source.startswith("data:") else source, validate=True)
        image = Image.open(io.BytesIO(data))
        image.load()
    except binascii.Error:
        raise UserError(f"There is no image {shown}: it is not a file, an http(s) address or a data: URL.") from None
    except Exception as error:  # PIL's decoders and httpx have no error in common
        raise UserError(f"The image {shown} cannot be read ({one_line(error)}).") from error
    return image


class SparseVLMProcessor(ProcessorMixin):
    """Texts with one `<image>` per picture, and the pictures -> input_ids, attention_mask, pixel_values.

    Each `<image>` becomes `num_image_tokens` of them, whatever the picture's size. What people type is text:
    `apply_chat_template` escapes the control tokens in messages (`sparse_vlm.literal_text`), and the processor reads
    escaped ones as their letters. `<image>` itself is a placeholder in a user's content that is a string, where
    nothing else could place an image, and text in a list of parts.

    Args:
        image_processor: see above.
        tokenizer: the LLM's, with `<image>` in its vocabulary.
        num_image_tokens: visual tokens of a picture.
        chat_template: takes a message's content as text or as a list of parts, see `prepare_chat_template`.
    """

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
        tokenizer.padding_side = "left"  # a batch of prompts ends where generation begins; not saved with a tokenizer
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    def __call__(self, images: Any = None, text: Any = None, *others: Any, **options: Any) -> BatchFeature:
        """As ProcessorMixin's. Images may be nested, a list for each text.

        Raises:
            UserError: an image is not one; the list of images is empty; a text has not as many placeholders as images.
        """
        texts = [text] if isinstance(text, str) else text
        if images is not None:
            images = self.image_processor.fetch_images(images)
            if (
                texts is not None
                and isinstance(images, list)
                and all(isinstance(part, list) for part in images)
                and images
            ):
                _check_dealt([part.count(self.image_token) for part in texts], [len(part) for part in images])
                images = [image for part in images for image in part] or None
        if images is not None:
            images = [
                self.image_processor.process_image(image, options.get("input_data_format"))
                for image in flat_images(images)
            ]
        processor = self
        if texts is not None and any(isinstance(one, str) and is_escaped(one) for one in texts):
            processor = copy.copy(self)
            processor.tokenizer = LiteralTokenizer(self.tokenizer)
        return super(SparseVLMProcessor, processor).__call__(images, text, *others, **options)

    def apply_chat_template(self, conversation: Any, *args: Any, **options: Any) -> Any:
        """As ProcessorMixin's, with the control tokens in messages escaped."""
        tokens = control_tokens(self.tokenizer)
        several = bool(conversation) and not isinstance(conversation[0], dict)
        escaped: Any = [_escape(turns, tokens) for turns in conversation] if several else _escape(conversation, tokens)
        return super().apply_chat_template(escaped, *args, **options)

    def replace_image_token(self, image_inputs: dict, image_idx: int, **unused: object) -> str:
        """The text that the `image_idx`-th placeholder becomes (called by transformers)."""
        return self.image_token * self.num_image_tokens

    def _get_num_multimodal_tokens(
        self, image_sizes: list[list[int]] | None = None, **unused: object
    ) -> MultiModalData:
        """Visual tokens per image, for serving software that plans before it sees the images."""
        if image_sizes is None:
            return MultiModalData()
        count = len(image_sizes)
        return MultiModalData(num_image_tokens=[self.num_image_tokens] * count, num_image_patches=[1] * count)


def _check_dealt(placeholders: Sequence[int], images: Sequence[int]) -> None:
    if len(placeholders) != len(images):
        raise UserError(f"There are {len(placeholders)} texts and {len(images)} lists of images: each text needs one.")
    for number, (wanted, given) in enumerate(zip(placeholders, images, strict=True), start=1):
        if wanted != given:
            raise UserError(f"Text {number} has {wanted} {IMAGE_TOKEN}, but its list has {given} images.")


def _escape(turns: Any, tokens: Sequence[str]) -> list[dict[str, Any]]:
    """The turns of a conversation with the control tokens in their words escaped."""
    return [
        {**turn, "content": _escape_content(turn["content"], tokens, turn.get("role"))} if "content" in turn else turn
        for turn in getattr(turns, "messages", turns)
    ]


def _escape_content(content: Any, tokens: Sequence[str], role: Any) -> Any:
    if isinstance(content, str):
        return escape(content, [token for token in tokens if token != IMAGE_TOKEN or role != "user"])
    if not isinstance(content, list | tuple):
        return content
    said = [place for place, part in enumerate(content) if isinstance(part, dict) and isinstance(part.get("text"), str)]
    words = dict(zip(said, escape_parts([content[place]["text"] for place in said], tokens), strict=True))
    return [{**part, "text": words[place]} if place in words else part for place, part in enumerate(content)]


def add_image_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """Makes `<image>` one token of `tokenizer` (in place, once) and returns its id."""
    if IMAGE_TOKEN not in tokenizer.get_added_vocab():
        tokenizer.add_tokens([IMAGE_TOKEN], special_tokens=True)
    return tokenizer.get_added_vocab()[IMAGE_TOKEN]


def prepare_chat_template(tokenizer: PreTrainedTokenizerBase, chat_template: str | Path | None = None) -> str:
    """A template that renders `[{"type": "image"}, {"type": "text", "text": Q}]` and "<image>\\nQ" alike.

    A template that prints the content as text (SmolLM2's own, and most LLMs') is extended by a few lines.

    Args:
        tokenizer: the LLM's; its own template is the default.
        chat_template: a Jinja file, Jinja text, or a name of CHAT_TEMPLATES.

    Raises:
        UserError: there is no template, no such file, or it cannot place an image.
    """
    template = _read_template(chat_template) if chat_template is not None else tokenizer.chat_template
    if not isinstance(template, str):
        raise UserError(
            "The LLM's tokenizer has no chat template: give one with --chat_template, a Jinja file or "
            f"{' or '.join(CHAT_TEMPLATES)} (Vicuna's)."
        )
    for candidate in (template, PARTS_TO_TEXT + template):
        if _places_image(tokenizer, candidate):
            return candidate
    raise UserError(
        "The chat template cannot place an image: it must print the content of a user's message, e.g. "
        "\"{% for message in messages %}{{ message['content'] }}{% endfor %}\"."
    )


def _read_template(chat_template: str | Path) -> str:
    if isinstance(chat_template, str) and ("{{" in chat_template or "{%" in chat_template):
        return chat_template
    if chat_template in CHAT_TEMPLATES:
        return CHAT_TEMPLATES[str(chat_template)]
    if not Path(chat_template).is_file():
        raise UserError(f"There is no chat template file {chat_template}; known names: {', '.join(CHAT_TEMPLATES)}.")
    return Path(chat_template).read_text(encoding="utf-8")


def _places_image(tokenizer: PreTrainedTokenizerBase, template: str) -> bool:
    question = "What is shown?"
    parts = [{"type": "image"}, {"type": "text", "text": question}]
    rendered = []
    try:
        for content in (f"{IMAGE_TOKEN}\n{question}", parts):
            messages: Any = [{"role": "user", "content": content}]
            text: Any = tokenizer.apply_chat_template(
                messages, chat_template=template, tokenize=False, add_generation_prompt=True
            )
            rendered.append(text)
    except (jinja2.TemplateError, TypeError):  # e.g. text + list
        return False
    as_text, as_parts = rendered
    return as_text == as_parts and as_text.count(IMAGE_TOKEN) == 1 and question in as_text


AutoImageProcessor.register(
    SparseFormerVisionConfig,
    image_processor_classes={"pil": SparseFormerImageProcessor, "torchvision": SparseFormerImageProcessor},
)
AutoProcessor.register(SparseVLMConfig, SparseVLMProcessor)
