"""The data of the alignment and the instruction stage: options, data sets and collator."""

import functools
import logging
from collections.abc import Callable
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
from sparse_vlm.vlm.language.positions import most_positions
from sparse_vlm.vlm.language.templates import LLAVA_PLAIN
from sparse_vlm.vlm.language.turns import ChatFormat
from sparse_vlm.vlm.modeling import SparseVLMForConditionalGeneration
from sparse_vlm.vlm.processing import SparseVLMProcessor
from train.language.visual_cache import use_cached_tokens
from train.stages.stage import StageArguments

logger = logging.getLogger(__name__)
# Types whose packed conversations do not attend to each other; tests/vlm/language/test_families.py compares them with
# single ones.
PACKABLE = ("gemma", "gemma2", "gemma3_text", "llama", "mistral", "phi", "phi3", "qwen2", "qwen3")


@dataclass
class DataArguments:
    """The training data and how samples become rows."""

    data_path: str = field(metadata={"help": "LLaVA JSON or JSONL, wds:SHARDS, hf:NAME, or a YAML mixture of these"})
    image_folder: str = field(default=".", metadata={"help": "folder that the image paths are relative to"})
    eval_data_path: str | None = field(
        default=None, metadata={"help": "held-out data, measured with --eval_strategy steps"}
    )
    eval_image_folder: str | None = field(
        default=None, metadata={"help": "as --image_folder, for --eval_data_path (default: --image_folder)"}
    )
    model_max_length: int = field(
        default=2048, metadata={"help": "maximum number of tokens per sample; see --too_long"}
    )
    too_long: str = field(
        default="error", metadata={"help": "samples over --model_max_length: error | skip | truncate"}
    )
    independent_turns: bool = field(
        default=False, metadata={"help": "turns of a sample share the image but do not attend to each other (VQA)"}
    )
    packing: bool = field(
        default=False, metadata={"help": "short conversations of a batch share a row without attending to each other"}
    )
    on_bad_sample: str = field(
        default="error", metadata={"help": "bad samples: error | skip (reads all data once at the start)"}
    )
    cache_visual_tokens: str | None = field(
        default=None,
        metadata={"help": "directory for visual tokens, which a frozen vision tower computes once per image"},
    )


@dataclass(frozen=True)
class StageData:
    """The data sets of a stage and the collator that makes their batches."""

    training: ConversationDataset
    held_out: ConversationDataset | None
    collator: ConversationCollator


def pixel_values(image_processor: SparseFormerImageProcessor, image: Image.Image) -> torch.Tensor:
    """Preprocess one image with the model directory's image processor: float[3, H, W]."""
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
    """Make the data sets and the collator.

    Args:
        data_args: the options.
        args: the stage's arguments.
        model: the model that trains.
        processor: the model's processor.
        language: True if the language model trains. If not, or with several processes, a batch without images gets a
            blank one: otherwise no weight would have a gradient, or processes would wait for each other forever.
        tower: True if the vision tower trains, even if only in part.
        plain: use LLaVA's caption format instead of the model's chat template.

    Raises:
        UserError: contradictory settings, or bad data.
    """
    if data_args.cache_visual_tokens is not None and tower:
        raise UserError("--cache_visual_tokens is for a frozen vision tower, but here it trains, at least in part.")
    _check_rows(data_args, model)
    _check_evaluation(data_args, args)
    template = LLAVA_PLAIN if plain else processor.tokenizer.get_chat_template()
    chat = ChatFormat(processor.tokenizer, template, model.config.image_token_id, processor.num_image_tokens, plain)
    preprocess = functools.partial(pixel_values, processor.image_processor)
    training, held_out = _open_datasets(data_args, args, chat, preprocess, _limit(data_args, model))
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


def _open_datasets(
    data_args: DataArguments,
    args: StageArguments,
    chat: ChatFormat,
    preprocess: Callable[[Image.Image], torch.Tensor],
    limit: LengthLimit,
) -> tuple[ConversationDataset, ConversationDataset | None]:
    """Open the training data and, with --eval_data_path, the held-out data."""

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
    return training, held_out


def _limit(data_args: DataArguments, model: SparseVLMForConditionalGeneration) -> LengthLimit:
    """Return --model_max_length, or the language model's number of positions if that is lower, and log it."""
    positions = most_positions(model.config.get_text_config())
    if positions is None or positions >= data_args.model_max_length:
        return LengthLimit(data_args.model_max_length, data_args.too_long)
    logger.warning(
        "The language model has %d positions, which replace --model_max_length %d as the limit of a sample.",
        positions,
        data_args.model_max_length,
    )
    return LengthLimit(positions, data_args.too_long, of_model=True)


def _check_rows(data_args: DataArguments, model: SparseVLMForConditionalGeneration) -> None:
    """Check that the language model supports --packing and --independent_turns."""
    text: Any = model.config.get_text_config()
    if data_args.packing and text.model_type not in PACKABLE:
        raise UserError(
            f"--packing is not known to keep the conversations of a row apart in a language model of type "
            f"{text.model_type!r}. It is supported for {', '.join(PACKABLE)}. Leave it out."
        )
    if not data_args.independent_turns:
        return
    # Their 4D mask is used as given, but only by sdpa, and it replaces that of a sliding window.
    if text._attn_implementation not in ("sdpa", None):
        raise UserError("--independent_turns needs --attn_implementation sdpa, because it uses a 4D mask.")
    window = getattr(text, "sliding_window", None) if getattr(text, "use_sliding_window", True) else None
    if window is not None and window < data_args.model_max_length:
        raise UserError(
            f"--independent_turns does not support the language model's sliding window of {window} tokens: lower "
            f"--model_max_length {data_args.model_max_length} to {window}."
        )


def _check_evaluation(data_args: DataArguments, args: StageArguments) -> None:
    args.require_held_out(data_args.eval_data_path)
    if args.eval_strategy == "no" and data_args.eval_data_path is not None:
        raise UserError(f"--eval_data_path {data_args.eval_data_path} needs --eval_strategy steps or epoch.")
    args.require_metric(["loss"], {})


def _packing(model: SparseVLMForConditionalGeneration) -> str:
    """Flash attention needs all conversations in one row; a mask would cost the square of that row's length."""
    return "one row" if "flash" in (model.config.get_text_config()._attn_implementation or "") else "longest"


def _write_skipped(dataset: ConversationDataset, args: StageArguments) -> None:
    if dataset.skipped and args.process_index == 0:
        write_text(Path(args.output_dir) / "skipped_samples.txt", "".join(f"{line}\n" for line in dataset.skipped))
