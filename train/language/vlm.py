"""The model of the alignment and the instruction stage: loading, parameter groups, training, result."""

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
from sparse_vlm.vlm.loading import load_vlm
from sparse_vlm.vlm.modeling import SparseVLMForConditionalGeneration
from sparse_vlm.vlm.processing import SparseVLMProcessor
from train.language.data import StageData
from train.language.result import write_result
from train.language.trainer import ConversationTrainer, keep_frozen_weights
from train.stages.frozen import cast_frozen, log_weight_bytes
from train.stages.stage import ParameterGroup, StageArguments, log_trainable, prepare, publish, run

logger = logging.getLogger(__name__)


@dataclass
class ModelArguments:
    """The model to start from."""

    model_name_or_path: str = field(metadata={"help": "model directory of `sparse-vlm build` or of an earlier stage"})
    attn_implementation: str | None = field(
        default=None,
        metadata={"help": "attention of the language model: sdpa | eager | flash_attention_2 | … (default: sdpa)"},
    )
    output_dtype: str | None = field(
        default=None,
        metadata={"help": f"dtype of the result: {' | '.join(DTYPES)} (default: that of --model_name_or_path)"},
    )

    def __post_init__(self) -> None:
        if self.output_dtype is not None and self.output_dtype not in DTYPES:
            raise unknown_choice("--output_dtype", self.output_dtype, DTYPES)


def load(
    model_args: ModelArguments, args: StageArguments, quantization: BitsAndBytesConfig | None = None
) -> tuple[SparseVLMForConditionalGeneration, SparseVLMProcessor]:
    """Call `prepare` and load the model in float32. With bf16, `train` casts the frozen weights."""
    args.refuse_full_eval()
    prepare(args)
    model, processor = load_vlm(
        model_args.model_name_or_path,
        dtype=torch.float32,
        attn_implementation=model_args.attn_implementation,
        quantization=quantization,
        device=None if quantization is None else args.device,
    )
    # Under ZeRO-3, transformers 5.23 also keeps renamings that no name needed, and would reverse them on saving.
    model._weight_conversions = []  # type: ignore[assignment]
    return model, processor


def vlm_groups(
    model: SparseVLMForConditionalGeneration,
    *,
    tower: float | None,
    projector: float | None,
    language: float | None,
    focusing: float | None = None,
) -> list[ParameterGroup]:
    """Return the parameter groups of a VLM. A learning rate of None freezes its group.

    Args:
        tower: learning rate of the vision tower.
        projector: learning rate of the projector.
        language: learning rate of the language model with its head.
        focusing: learning rate of the tower's stem and focusing transformer; None: they belong to the tower.
    """
    new = [] if focusing is None else [*focusing_parameters(model)]
    named = [
        ParameterGroup("focusing", tuple(new), focusing),
        ParameterGroup("vision tower", _without(new, model.model.vision_tower), tower),
        ParameterGroup("projector", tuple(model.model.multi_modal_projector.parameters()), projector),
    ]
    rest = _without([parameter for group in named for parameter in group.parameters], model)
    return [group for group in [*named, ParameterGroup("language model", rest, language)] if group.parameters]


def focusing_parameters(model: SparseVLMForConditionalGeneration) -> list[nn.Parameter]:
    """Return the parameters of the vision tower that bootstrapping does not inherit: stem and focusing transformer.

    Raises:
        UserError: the tower is not a SparseFormer.
    """
    encoder: Any = getattr(model.model.vision_tower, "encoder", None)
    if not hasattr(encoder, "focus"):
        raise UserError("--tune_focusing is for a SparseFormer; this model's vision tower has no focusing transformer.")
    return [*encoder.stem.parameters(), *encoder.focus.parameters()]


def _without(parameters: Sequence[nn.Parameter], module: nn.Module) -> tuple[nn.Parameter, ...]:
    known = {id(parameter) for parameter in parameters}
    return tuple(parameter for parameter in module.parameters() if id(parameter) not in known)


def train(
    model: SparseVLMForConditionalGeneration | PeftModel,
    groups: Sequence[ParameterGroup],
    model_args: ModelArguments,
    args: StageArguments,
    data: StageData,
    processor: SparseVLMProcessor,
) -> None:
    """Train, and publish the starting model with the trained weights in output_dir. An adapter is merged."""
    if args.load_best_model_at_end:
        raise UserError("--load_best_model_at_end is not supported. Keep all checkpoints with --keep_checkpoints True.")
    log_trainable(model, groups, args)
    cast_frozen(model, args)
    log_weight_bytes(model, args)
    if not isinstance(model, PeftModel):
        keep_frozen_weights(model)
    args.prediction_loss_only = True  # the logits of an evaluation would fill the memory
    trainer = ConversationTrainer(
        groups,
        drawn=data.drawn,
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
        unset_hf_deepspeed_config()  # only this process loads the model: it must not be sharded
        provenance = _provenance(model, args, data.training)
        write_result(
            model_args.model_name_or_path,
            trained,
            result,
            model_args.output_dtype,
            provenance,
            visual_tokens=None if data.drawn is None else str(data.drawn.counts),
            region_tokens=processor.region_tokens,
            frame_tokens=processor.frame_tokens,
        )
        shutil.rmtree(trained)
        publish(result, args)
        logger.info("Model directory: %s", args.output_dir)


def _provenance(model: nn.Module, args: StageArguments, dataset: ConversationDataset) -> dict[str, Any]:
    """Return the starting model's provenance plus this stage, with the file names of its data."""
    config: Any = model.config
    earlier = config.provenance or {}
    names = dict.fromkeys(Path(entry.source.name).name for entry in dataset.entries)
    stage = {"stage": type(args).__name__.removesuffix("Arguments").lower(), "data": list(names)}
    return {**earlier, "stages": [*earlier.get("stages", []), stage]}
