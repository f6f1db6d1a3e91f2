"""What the alignment and the instruction stage share beside their data: the model, its parts, the final directory."""

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import BitsAndBytesConfig
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from sparse_vlm.data.conversations.dataset import ConversationDataset
from sparse_vlm.dtypes import DTYPES
from sparse_vlm.errors import UserError, unknown_choice
from sparse_vlm.vlm.loading import check_opens, load_vlm
from sparse_vlm.vlm.modeling import SparseVLMForConditionalGeneration
from sparse_vlm.vlm.processing import SparseVLMProcessor
from train.language.data import StageData
from train.language.result import write_result
from train.language.trainer import ConversationTrainer, keep_frozen_weights
from train.stages.frozen import hold_frozen, say_weight_bytes
from train.stages.stage import Part, StageArguments, prepare, publish, run, say_what_trains

logger = logging.getLogger(__name__)


@dataclass
class ModelArguments:
    """The model to start from."""

    model_name_or_path: str = field(metadata={"help": "a directory of `sparse-vlm build` or of an earlier stage"})
    attn_implementation: str | None = field(
        default=None, metadata={"help": "of the language model: sdpa (default) | eager | flash_attention_2 | …"}
    )
    output_dtype: str | None = field(
        default=None,
        metadata={"help": f"of the result's weights: {' | '.join(DTYPES)}; default: that of model_name_or_path"},
    )

    def __post_init__(self) -> None:
        if self.output_dtype is not None and self.output_dtype not in DTYPES:
            raise unknown_choice("--output_dtype", self.output_dtype, DTYPES)


def load(
    model_args: ModelArguments, args: StageArguments, quantization: BitsAndBytesConfig | None = None
) -> tuple[SparseVLMForConditionalGeneration, SparseVLMProcessor]:
    """Prepares the start and loads the model in float32; `train` converts what is frozen where the stage is in bf16."""
    args.refuse_full_eval()
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
    model_args: ModelArguments,
    args: StageArguments,
    data: StageData,
    processor: SparseVLMProcessor,
) -> None:
    """Trains and makes output_dir a model directory: the starting one with what trained, an adapter merged."""
    if args.load_best_model_at_end:
        raise UserError("--load_best_model_at_end is not supported: --keep_checkpoints True keeps the best one too.")
    say_what_trains(model, parts, args)
    hold_frozen(model, args)
    say_weight_bytes(model, args)
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
    model.config.get_text_config().use_cache = False  # training never reads the keys and values again
    run(trainer)
    trained, result = (Path(args.output_dir) / name for name in (".trained", ".finished"))
    if args.process_index == 0:
        shutil.rmtree(trained, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    trainer.save_model(str(trained))
    if args.process_index == 0:
        unset_hf_deepspeed_config()  # this process alone loads, nothing may be sharded
        provenance = _provenance(model, args, data.training)
        write_result(model_args.model_name_or_path, trained, result, model_args.output_dtype, provenance)
        shutil.rmtree(trained)
        publish(result, Path(args.output_dir), check_opens, keep_checkpoints=args.keep_checkpoints)
        logger.warning("Model directory: %s", args.output_dir)


def _provenance(model: nn.Module, args: StageArguments, dataset: ConversationDataset) -> dict[str, Any]:
    """The starting model's, and this stage: its data by their names without folders."""
    config: Any = model.config
    earlier = config.provenance or {}
    names = dict.fromkeys(Path(entry.source.name).name for entry in dataset.entries)
    stage = {"stage": type(args).__name__.removesuffix("Arguments").lower(), "data": list(names)}
    return {**earlier, "stages": [*earlier.get("stages", []), stage]}
