"""The data of the alignment and the instruction stage: data sets and collator."""

import functools
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers.integrations import is_deepspeed_zero3_enabled

from sparse_vlm.data.conversations.collate import ConversationCollator
from sparse_vlm.data.conversations.dataset import ConversationDataset
from sparse_vlm.data.conversations.length_limit import LengthLimit
from sparse_vlm.data.conversations.sources import open_sources
from sparse_vlm.data.conversations.videos import VideoSettings
from sparse_vlm.errors import UserError
from sparse_vlm.files import write_text
from sparse_vlm.vlm.image_processor import SparseFormerImageProcessor
from sparse_vlm.vlm.language.positions import most_positions
from sparse_vlm.vlm.language.templates import LLAVA_PLAIN
from sparse_vlm.vlm.language.turns import ChatFormat
from sparse_vlm.vlm.modeling import SparseVLMForConditionalGeneration
from sparse_vlm.vlm.processing import SparseVLMProcessor
from sparse_vlm.vlm.vision import SparseFormerVisionModel, visual_tokens
from train.language.data_arguments import DataArguments
from train.language.shared_checks import SharedChecks
from train.language.visual_cache import use_cached_tokens
from train.stages.drawn_counts import DrawnCounts
from train.stages.stage import StageArguments

logger = logging.getLogger(__name__)
# Types whose packed conversations do not attend to each other; tests/vlm/language/test_families.py compares them with
# single ones.
PACKABLE = ("gemma", "gemma2", "gemma3_text", "llama", "mistral", "phi", "phi3", "qwen2", "qwen3")
NO_REGIONS = "which do not work with ZeRO-3: use train/configs/deepspeed/zero2.json"
NO_VIDEOS = "which does not work with ZeRO-3: use train/configs/deepspeed/zero2.json"


@dataclass(frozen=True)
class StageData:
    """The data sets of a stage, the collator that makes their batches, and the number of visual tokens of each step
    (None: the model's own)."""

    training: ConversationDataset
    held_out: ConversationDataset | None
    collator: ConversationCollator
    drawn: DrawnCounts | None = None


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
    """Make the data sets and the collator. The processor gets --region_tokens and --frame_tokens.

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
    _check_counts(data_args, model)
    processor.region_tokens = data_args.region_tokens or processor.region_tokens
    processor.frame_tokens = data_args.frame_tokens or processor.frame_tokens
    template = LLAVA_PLAIN if plain else processor.tokenizer.get_chat_template()
    default, counts = processor.num_image_tokens, data_args.token_counts
    chat = ChatFormat(
        processor.tokenizer,
        template,
        model.config.image_token_id,
        default,
        plain,
        processor.region_tokens,
        processor.frame_tokens or default,
    )
    training, held_out = _open_datasets(data_args, args, chat, model, processor)
    _write_skipped(training, args)
    shape, image_key = training.reader.preprocess(Image.new("RGB", (8, 8))).shape, "pixel_values"
    if data_args.cache_visual_tokens is not None:
        requested = {training: (default,) if counts is None else counts.counts}
        requested |= {} if held_out is None else {held_out: (default,)}
        use_cached_tokens(data_args.cache_visual_tokens, requested, model, processor, args)
        projector: Any = model.model.multi_modal_projector
        shape, image_key = torch.Size(projector.norm.normalized_shape), "visual_tokens"
    pad = processor.tokenizer.pad_token_id
    collator = ConversationCollator(
        processor.tokenizer.eos_token_id if pad is None else pad,
        independent_turns=data_args.independent_turns,
        packing=_packing(model) if data_args.packing else None,
        default_tokens=default,
        image_key=image_key,
        blank_image=None if language and args.world_size == 1 else (chat.image_token_id, shape),
    )
    drawn = None if counts is None else DrawnCounts(counts, data_args.token_density, args.order_seed)
    return StageData(training, held_out, collator, drawn)


def _open_datasets(
    data_args: DataArguments,
    args: StageArguments,
    chat: ChatFormat,
    model: SparseVLMForConditionalGeneration,
    processor: SparseVLMProcessor,
) -> tuple[ConversationDataset, ConversationDataset | None]:
    """Open the training data, with the largest number of visual tokens, and with --eval_data_path the held-out data,
    with the model's own. Held-out samples are always checked before: a substitute would count twice."""

    def dataset(
        data_path: str, image_folder: str, video_folder: str | None, chat: ChatFormat, **options: Any
    ) -> ConversationDataset:
        return ConversationDataset(
            open_sources(data_path, image_folder, video_folder),
            chat,
            functools.partial(pixel_values, image_processor),
            model_box=image_processor.model_box if _looks_anywhere(model) else None,
            # Processes whose batches differ in regions would gather a sharded tower's weights different numbers of
            # times, and wait for each other forever.
            no_regions=NO_REGIONS if is_deepspeed_zero3_enabled() else None,
            videos=videos,
            independent_turns=data_args.independent_turns,
            limit=limit,
            on_bad_sample=data_args.on_bad_sample,
            checks=SharedChecks(args, data_path, image_processor.to_dict()),
            seed=args.order_seed,
            **options,
        )

    image_processor: SparseFormerImageProcessor = processor.image_processor
    sampling = processor.video_processor.sampling(data_args.fps, data_args.max_frames)
    # the numbers of frames of processes differ, too
    videos = VideoSettings(sampling, data_args.timestamps, NO_VIDEOS if is_deepspeed_zero3_enabled() else None)
    limit, counts = _limit(data_args, model), data_args.token_counts
    largest = chat if counts is None else replace(chat, tokens_per_image=counts.counts[-1])
    training = dataset(
        data_args.data_path,
        data_args.image_folder,
        data_args.video_folder,
        largest,
        check_samples=data_args.check_samples,
        count_lengths=args.train_sampling_strategy == "group_by_length",
    )
    if data_args.eval_data_path is None:
        return training, None
    images = data_args.eval_image_folder or data_args.image_folder
    videos_folder = data_args.eval_video_folder or data_args.eval_image_folder or data_args.video_folder
    held_out = dataset(data_args.eval_data_path, images, videos_folder, chat)
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


def _looks_anywhere(model: SparseVLMForConditionalGeneration) -> bool:
    """Return whether the vision tower accepts any number of tokens, in any box: a bootstrapped SparseFormer does."""
    tower = model.model.vision_tower
    return isinstance(tower, SparseFormerVisionModel) and tower.encoder.config.focus.generation != "v1"


def _check_counts(data_args: DataArguments, model: SparseVLMForConditionalGeneration) -> None:
    """Check that the vision tower can have the numbers of --visual_tokens and --region_tokens."""
    least = 1 + model.config.image_seq_length - visual_tokens(model.config.vision_config).latent
    counts = data_args.token_counts
    for option, count in (
        ("visual_tokens", None if counts is None else counts.counts[0]),
        ("region_tokens", data_args.region_tokens),
        ("frame_tokens", data_args.frame_tokens),
    ):
        if count is None or (option == "frame_tokens" and count == model.config.image_seq_length):
            continue
        if not _looks_anywhere(model):
            raise UserError(
                f"--{option} needs a bootstrapped SparseFormer as the vision tower: this model's tower has a fixed "
                f"number of {model.config.image_seq_length} tokens. Leave it out."
            )
        if count < least:
            raise UserError(f"This model keeps CLS, so --{option} starts at {least}, got {count}.")


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
