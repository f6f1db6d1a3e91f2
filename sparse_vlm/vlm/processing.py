"""Pictures and messages → model inputs: image processor, placeholder tokens, chat template."""

from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2.functional import to_pil_image
from transformers import AutoImageProcessor, AutoProcessor, BatchFeature, PreTrainedTokenizerBase, ProcessorMixin
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import PILImageResampling, SizeDict
from transformers.processing_utils import MultiModalData

from sparse_vlm.encoder.canvas import ASPECTS, preparation
from sparse_vlm.encoder.preprocessing import CLIP_MEAN, CLIP_STD, Preprocessing
from sparse_vlm.errors import UserError, unknown_choice
from sparse_vlm.vlm.modeling import SparseVLMConfig
from sparse_vlm.vlm.portable import auto_map
from sparse_vlm.vlm.vision import SparseFormerVisionConfig

IMAGE_TOKEN = "<image>"
RESAMPLING = {"bilinear": PILImageResampling.BILINEAR, "bicubic": PILImageResampling.BICUBIC}


class SparseFormerImageProcessor(PilBackend):
    """`encoder.transform` in transformers' clothes: the same numbers to the last bit, CLIP's names in the JSON file.

    Takes PIL images of any mode and size, uint8[H,W,3] arrays and [3,H,W] tensors.

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

    def process_image(  # type: ignore[override]
        self, image: Image.Image | np.ndarray | torch.Tensor, **unused: object
    ) -> Image.Image:
        """One image as PIL. `unused` are transformers' settings of later steps."""
        return image if isinstance(image, Image.Image) else to_pil_image(image)

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


class SparseVLMProcessor(ProcessorMixin):
    """Texts with one `<image>` per picture, and the pictures -> input_ids, attention_mask, pixel_values.

    Each `<image>` becomes `num_image_tokens` of them, whatever the picture's size.

    Args:
        image_processor: see above.
        tokenizer: the LLM's, with `<image>` in its vocabulary.
        num_image_tokens: visual tokens of a picture.
        chat_template: takes a message's content as text or as a list of parts, see sparse_vlm/vlm/templates.py.
    """

    # The chat template writes them, in training too. Calls that say otherwise win.
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
        tokenizer.padding_side = "left"  # a batch of prompts ends where generation begins; not saved with a tokenizer
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

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


def add_image_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """Makes `<image>` one token of `tokenizer` (in place, once) and returns its id."""
    if IMAGE_TOKEN not in tokenizer.get_added_vocab():
        tokenizer.add_tokens([IMAGE_TOKEN], special_tokens=True)
    return tokenizer.get_added_vocab()[IMAGE_TOKEN]


AutoImageProcessor.register(
    SparseFormerVisionConfig,
    image_processor_classes={"pil": SparseFormerImageProcessor, "torchvision": SparseFormerImageProcessor},
)
AutoProcessor.register(SparseVLMConfig, SparseVLMProcessor)
