"""The data of the alignment and the instruction stage: its flags, data sets, and what makes batches of them."""

import functools
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from sparse_vlm.data.conversations.collate import ConversationCollator
from sparse_vlm.data.conversations.dataset import ConversationDataset
from sparse_vlm.data.conversations.length_limit import LengthLimit
from sparse_vlm.data.conversations.sources import open_sources
from sparse_vlm.errors import UserError
from sparse_vlm.files import write_text
from sparse_vlm.vlm.image_processor import SparseFormerImageProcessor
from sparse_vlm.vlm.language.causal_lm import most_positions
from sparse_vlm.vlm.language.templates import LLAVA_PLAIN
from sparse_vlm.vlm.language.turns import ChatFormat
from sparse_vlm.vlm.modeling import SparseVLMForConditionalGeneration
from sparse_vlm.vlm.processing import SparseVLMProcessor
from train.language.visual_cache import use_cached_tokens
from train.stages.stage import StageArguments

logger = logging.getLogger(__name__)
# Whose packed conversations do not see each other: tests/vlm/language/test_families.py compares them with single ones.
PACKABLE = ("gemma", "gemma2", "gemma3_text", "llama", "mistral", "phi", "phi3", "qwen2", "qwen3")


@dataclass
class DataArguments:
    """The data, in LLaVA's format."""

    data_path: str = field(metadata={"help": "LLaVA JSON or JSONL, wds:SHARDS, hf:NAME, or a YAML mixture of these"})
    image_folder: str = field(default=".", metadata={"help": "what the samples' image paths are relative to"})
    eval_data_path: str | None = field(default=None, metadata={"help": "held-out data for --eval_strategy steps"})
    eval_image_folder: str | None = field(default=None, metadata={"help": "default: --image_folder"})
    model_max_length: int = field(default=2048, metadata={"help": "tokens of a sample at most; see --too_long"})
    too_long: str = field(
        default="error", metadata={"help": "error | skip | truncate: what becomes of a sample over --model_max_length"}
    )
    independent_turns: bool = field(
        default=False, metadata={"help": "turns of a sample share the image but do not see each other (VQA)"}
    )
    packing: bool = field(
        default=False, metadata={"help": "short conversations of a batch share a row and do not see each other"}
    )
    on_bad_sample: str = field(default="error", metadata={"help": "error | skip (reads all data once at the start)"})
    cache_visual_tokens: str | None = field(
        default=None, metadata={"help": "directory: a frozen vision tower computes each picture's tokens only once"}
    )


@dataclass(frozen=True)
class StageData:
    """What a stage trains on and is measured on, and what makes batches of it."""

    training: ConversationDataset
    held_out: ConversationDataset | None
    collator: ConversationCollator


def pixel_values(image_processor: SparseFormerImageProcessor, image: Image.Image) -> torch.Tensor:
    """float[3,H,W] of one image by the model directory's own image processor."""
    return image_processor(images=image, return_tensors="pt")["pixel_values"][0]


def make_data(
    data_args: DataArguments,
    args: StageArguments,
    model: SparseVLMForConditionalGeneration,
    processor: SparseVLMProcessor,
    *,
    language: bool,
    tower: bool = False,
    plain: bool = False,
) -> StageData:
    """The data sets and the collator.

    Args:
        language: whether parts behind the embedding train too. If not, or with several processes, a batch without
            images gets a blank one: otherwise nothing would have a gradient, or some process would wait.
        tower: whether the vision tower trains, or a part of it.
        plain: LLaVA's format for captions in the place of the model directory's chat template.

    Raises:
        UserError: settings that do not go together, or bad data.
    """
    if data_args.cache_visual_tokens is not None and tower:
        raise UserError("--cache_visual_tokens is for a frozen vision tower; here it trains, or a part of it.")
    _check_rows(data_args, model)
    _check_evaluation(data_args, args)
    template = LLAVA_PLAIN if plain else processor.tokenizer.get_chat_template()
    chat = ChatFormat(processor.tokenizer, template, model.config.image_token_id, processor.num_image_tokens, plain)
    preprocess = functools.partial(pixel_values, processor.image_processor)
    limit = _limit(data_args, model)

    def dataset(data_path: str, image_folder: str) -> ConversationDataset:
        return ConversationDataset(
            open_sources(data_path, image_folder),
            chat,
            preprocess,
            independent_turns=data_args.independent_turns,
            limit=limit,
            on_bad_sample=data_args.on_bad_sample,
            seed=args.order_seed,
        )

    training, held_out = dataset(data_args.data_path, data_args.image_folder), None
    if data_args.eval_data_path is not None:
        held_out = dataset(data_args.eval_data_path, data_args.eval_image_folder or data_args.image_folder)
    _write_skipped(training, args)
    shape, image_key = preprocess(Image.new("RGB", (8, 8))).shape, "pixel_values"
    if data_args.cache_visual_tokens is not None:
        both = [training] if held_out is None else [training, held_out]
        use_cached_tokens(data_args.cache_visual_tokens, both, model, processor, args)
        projector: Any = model.model.multi_modal_projector
        shape, image_key = torch.Size((chat.tokens_per_image, *projector.norm.normalized_shape)), "visual_tokens"
    pad = processor.tokenizer.pad_token_id
    collator = ConversationCollator(
        processor.tokenizer.eos_token_id if pad is None else pad,
        independent_turns=data_args.independent_turns,
        packing=_packing(model) if data_args.packing else None,
        image_key=image_key,
        blank_image=None if language and args.world_size == 1 else (chat.image_token_id, chat.tokens_per_image, shape),
    )
    return StageData(training, held_out, collator)


def _limit(data_args: DataArguments, model: SparseVLMForConditionalGeneration) -> LengthLimit:
    """--model_max_length, or the language model's positions where they are fewer, which is logged."""
    positions = most_positions(model.config.get_text_config())
    if positions is None or positions >= data_args.model_max_length:
        return LengthLimit(data_args.model_max_length, data_args.too_long)
    logger.warning(
        "The language model has %d positions: samples may be so long, not --model_max_length %d.",
        positions,
        data_args.model_max_length,
    )
    return LengthLimit(positions, data_args.too_long, of_model=True)


def _check_rows(data_args: DataArguments, model: SparseVLMForConditionalGeneration) -> None:
    """What --packing and --independent_turns need of the language model."""
    text: Any = model.config.get_text_config()
    if data_args.packing and text.model_type not in PACKABLE:
        raise UserError(
            f"--packing is not known to keep the conversations of a row apart in a language model of type "
            f"{text.model_type!r}; it is in {', '.join(PACKABLE)}. Leave it out."
        )
    if not data_args.independent_turns:
        return
    # Their 4D mask is taken as it is: by sdpa alone, and in the place of a sliding window's.
    if text._attn_implementation not in ("sdpa", None):
        raise UserError("--independent_turns needs the attention implementation sdpa; it uses a 4D mask.")
    window = getattr(text, "sliding_window", None) if getattr(text, "use_sliding_window", True) else None
    if window is not None and window < data_args.model_max_length:
        raise UserError(
            f"--independent_turns cannot keep the language model's sliding window of {window} tokens: lower "
            f"--model_max_length {data_args.model_max_length} to it."
        )


def _check_evaluation(data_args: DataArguments, args: StageArguments) -> None:
    strategy = getattr(args.eval_strategy, "value", args.eval_strategy)  # an enum that prints as its class
    if strategy != "no" and data_args.eval_data_path is None:
        raise UserError(f"--eval_strategy {strategy} needs held-out data: give --eval_data_path.")
    if strategy == "no" and data_args.eval_data_path is not None:
        raise UserError(f"--eval_data_path {data_args.eval_data_path} is measured with --eval_strategy steps or epoch.")
    args.require_metric(["loss"], {})


def _packing(model: SparseVLMForConditionalGeneration) -> str:
    """flash attention tells conversations apart in a single row alone; a mask costs the row's length squared."""
    return "one row" if "flash" in (model.config.get_text_config()._attn_implementation or "") else "longest"


def _write_skipped(dataset: ConversationDataset, args: StageArguments) -> None:
    if dataset.skipped and args.process_index == 0:
        write_text(Path(args.output_dir) / "skipped_samples.txt", "".join(f"{line}\n" for line in dataset.skipped))
