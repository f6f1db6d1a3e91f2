"""What the alignment and the instruction stage share: their flags, model, data, parts, and the final directory."""

import functools
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from PIL import Image
from torch import nn
from transformers import BitsAndBytesConfig

from sparse_vlm.data.collate import ConversationCollator
from sparse_vlm.data.conversation_sources import open_sources
from sparse_vlm.data.conversations import ChatFormat
from sparse_vlm.data.dataset import ConversationDataset
from sparse_vlm.errors import UserError
from sparse_vlm.files import write_text
from sparse_vlm.vlm.build import load_vlm
from sparse_vlm.vlm.modeling import SparseVLMForConditionalGeneration
from sparse_vlm.vlm.processing import SparseFormerImageProcessor, SparseVLMProcessor
from sparse_vlm.vlm.templates import LLAVA_PLAIN
from train.stage import Part, StageArguments, prepare, publish, run, say_what_trains
from train.vlm_trainer import ConversationTrainer, keep_frozen_weights

logger = logging.getLogger(__name__)


@dataclass
class ModelArguments:
    """The model to start from."""

    model_name_or_path: str = field(metadata={"help": "a directory of `sparse-vlm build` or of an earlier stage"})
    attn_implementation: str | None = field(
        default=None, metadata={"help": "of the language model: sdpa (default) | eager | flash_attention_2 | …"}
    )


@dataclass
class DataArguments:
    """The data, in LLaVA's format."""

    data_path: str = field(metadata={"help": "LLaVA JSON or JSONL, wds:SHARDS, hf:NAME, or a YAML mixture of these"})
    image_folder: str = field(default=".", metadata={"help": "what the samples' image paths are relative to"})
    eval_data_path: str | None = field(default=None, metadata={"help": "held-out data for --eval_strategy steps"})
    eval_image_folder: str | None = field(default=None, metadata={"help": "default: --image_folder"})
    model_max_length: int = field(default=2048, metadata={"help": "a longer sample is an error; nothing is cut"})
    independent_turns: bool = field(
        default=False, metadata={"help": "turns of a sample share the image but do not see each other (VQA)"}
    )
    on_bad_sample: str = field(default="error", metadata={"help": "error | skip (reads all data once at the start)"})


@dataclass(frozen=True)
class StageData:
    """What a stage trains on and is measured on, and what makes batches of it."""

    training: ConversationDataset
    held_out: ConversationDataset | None
    collator: ConversationCollator


def load(
    model_args: ModelArguments, args: StageArguments, quantization: BitsAndBytesConfig | None = None
) -> tuple[SparseVLMForConditionalGeneration, SparseVLMProcessor]:
    """Prepares the start and loads the model in float32 (bf16 is the trainer's autocast or DeepSpeed's)."""
    prepare(args)
    model, processor = load_vlm(
        model_args.model_name_or_path,
        dtype=torch.float32,
        attn_implementation=model_args.attn_implementation,
        quantization=quantization,
        device=None if quantization is None else args.device,
    )
    # Under ZeRO-3 transformers 5.23 also keeps the renamings that no name needed, and would save with them reversed.
    model._weight_conversions = []  # type: ignore[assignment]
    return model, processor


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
    plain: bool = False,
) -> StageData:
    """The data sets and the collator.

    Args:
        language: whether parts behind the embedding train too. If not, or with several processes, a batch without
            images gets a blank one: otherwise nothing would have a gradient, or some process would wait.
        plain: LLaVA's format for captions in the place of the model directory's chat template.
    """
    if data_args.independent_turns:
        _check_independent_turns(model, data_args.model_max_length)
    strategy = getattr(args.eval_strategy, "value", args.eval_strategy)  # an enum that prints as its class
    if strategy != "no" and data_args.eval_data_path is None:
        raise UserError(f"--eval_strategy {strategy} needs held-out data: give --eval_data_path.")
    if strategy == "no" and data_args.eval_data_path is not None:
        raise UserError(f"--eval_data_path {data_args.eval_data_path} is measured with --eval_strategy steps or epoch.")
    template = LLAVA_PLAIN if plain else processor.tokenizer.get_chat_template()
    chat = ChatFormat(processor.tokenizer, template, model.config.image_token_id, processor.num_image_tokens, plain)
    preprocess = functools.partial(pixel_values, processor.image_processor)

    def dataset(data_path: str, image_folder: str) -> ConversationDataset:
        return ConversationDataset(
            open_sources(data_path, image_folder),
            chat,
            preprocess,
            independent_turns=data_args.independent_turns,
            max_length=data_args.model_max_length,
            on_bad_sample=data_args.on_bad_sample,
            seed=args.order_seed,
        )

    training, held_out = dataset(data_args.data_path, data_args.image_folder), None
    if data_args.eval_data_path is not None:
        held_out = dataset(data_args.eval_data_path, data_args.eval_image_folder or data_args.image_folder)
    _write_skipped(training, args)
    shape = preprocess(Image.new("RGB", (8, 8))).shape
    blank = None if language and args.world_size == 1 else (chat.image_token_id, chat.tokens_per_image, shape)
    pad = processor.tokenizer.pad_token_id
    pad = processor.tokenizer.eos_token_id if pad is None else pad
    collator = ConversationCollator(pad, independent_turns=data_args.independent_turns, blank_image=blank)
    return StageData(training, held_out, collator)


def _check_independent_turns(model: SparseVLMForConditionalGeneration, max_length: int) -> None:
    """Their 4D mask is taken as it is: by sdpa alone, and in the place of a sliding window's."""
    text = model.config.get_text_config()
    if text._attn_implementation not in ("sdpa", None):
        raise UserError("--independent_turns needs the attention implementation sdpa; it uses a 4D mask.")
    window = getattr(text, "sliding_window", None) if getattr(text, "use_sliding_window", True) else None
    if window is not None and window < max_length:
        raise UserError(
            f"--independent_turns cannot keep the language model's sliding window of {window} tokens: lower "
            f"--model_max_length {max_length} to it."
        )


def _write_skipped(dataset: ConversationDataset, args: StageArguments) -> None:
    if dataset.skipped and args.process_index == 0:
        write_text(Path(args.output_dir) / "skipped_samples.txt", "".join(f"{line}\n" for line in dataset.skipped))


def vlm_parts(
    model: SparseVLMForConditionalGeneration,
    *,
    tower: float | None,
    projector: float | None,
    language: float | None,
    focusing: float | None = None,
) -> list[Part]:
    """The parts of a VLM with their learning rates (None: frozen). The head counts as language.

    Args:
        focusing: of the tower's stem and focusing transformer; None: they are a part of the tower like the rest.
    """
    new = [] if focusing is None else [*focusing_parameters(model)]
    named = [
        Part("focusing", tuple(new), focusing),
        Part("vision tower", _without(new, model.model.vision_tower), tower),
        Part("projector", tuple(model.model.multi_modal_projector.parameters()), projector),
    ]
    rest = _without([parameter for part in named for parameter in part.parameters], model)
    return [part for part in [*named, Part("language model", rest, language)] if part.parameters]


def focusing_parameters(model: SparseVLMForConditionalGeneration) -> list[nn.Parameter]:
    """What bootstrapping made new in the vision tower: its stem and focusing transformer.

    Raises:
        UserError: the tower is no SparseFormer.
    """
    encoder: Any = getattr(model.model.vision_tower, "encoder", None)
    if not hasattr(encoder, "focus"):
        raise UserError("--tune_focusing is for a SparseFormer; this model's vision tower has no focusing part.")
    return [*encoder.stem.parameters(), *encoder.focus.parameters()]


def _without(parameters: Sequence[nn.Parameter], module: nn.Module) -> tuple[nn.Parameter, ...]:
    known = {id(parameter) for parameter in parameters}
    return tuple(parameter for parameter in module.parameters() if id(parameter) not in known)


def train(
    model: SparseVLMForConditionalGeneration | PeftModel,
    parts: Sequence[Part],
    args: StageArguments,
    data: StageData,
    processor: SparseVLMProcessor,
) -> Path:
    """Trains; returns a directory in output_dir with what `Trainer.save_model` writes, consolidated under ZeRO."""
    if args.load_best_model_at_end:
        raise UserError("--load_best_model_at_end is not supported: --keep_checkpoints True keeps the best one too.")
    say_what_trains(model, parts, args)
    if not isinstance(model, PeftModel):
        keep_frozen_weights(model)
    args.prediction_loss_only = True  # the logits of an evaluation would fill the memory
    trainer = ConversationTrainer(
        parts,
        model=model,
        args=args,
        train_dataset=data.training,
        eval_dataset=data.held_out,
        data_collator=data.collator,
        processing_class=processor,
    )
    text_config = model.config.get_text_config()
    use_cache, text_config.use_cache = text_config.use_cache, False  # training never reads the keys and values again
    run(trainer)
    text_config.use_cache = use_cache
    del model.config.use_cache  # set by Trainer; the result's config.json is to equal the start's
    model.config.provenance = _provenance(model, args, data.training)
    saved = Path(args.output_dir) / ".finished"
    if args.process_index == 0:
        shutil.rmtree(saved, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    trainer.save_model(str(saved))
    return saved


def _provenance(model: nn.Module, args: StageArguments, dataset: ConversationDataset) -> dict[str, Any]:
    """The starting model's, and this stage: its data by their names without folders."""
    config: Any = model.config
    earlier = config.provenance or {}
    names = dict.fromkeys(Path(entry.source.name).name for entry in dataset.entries)
    stage = {"stage": type(args).__name__.removesuffix("Arguments").lower(), "data": list(names)}
    return {**earlier, "stages": [*earlier.get("stages", []), stage]}


def finish(saved: Path, args: StageArguments) -> None:
    """Makes `saved` the stage's result, by the main process."""
    if args.process_index == 0:
        publish(saved, Path(args.output_dir), keep_checkpoints=args.keep_checkpoints)
        logger.warning("Model directory: %s", args.output_dir)
