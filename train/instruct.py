"""Instruction tuning: the projector and the language model, in full or by LoRA, on conversations.

    python -m train.instruct --model_name_or_path ALIGNED --data_path chats.json --image_folder IMAGES \\
        --output_dir OUT --learning_rate 2e-5 --mm_projector_lr 2e-5 --per_device_train_batch_size 16
    deepspeed --num_gpus 8 train/instruct.py --deepspeed train/zero3.json --bf16 True --lora_enable True ...

Input: a directory of `train/align.py`. Output: OUT is a directory of the same kind (LoRA merged), plus log.jsonl.
Docs: docs/training.md.
"""

import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

if __package__ in (None, ""):  # run as a file, as deepspeed does
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import HfArgumentParser, set_seed
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from sparse_vlm.errors import exit_with_sentence
from sparse_vlm.vlm.build import load_vlm
from sparse_vlm.vlm.modeling import SparseVLMForConditionalGeneration
from train import vlm
from train.stage import Part, StageArguments


@dataclass
class InstructArguments(StageArguments):
    """LLaVA's flags for what trains, and how fast; `learning_rate` is the language model's."""

    mm_projector_lr: float | None = field(default=None, metadata={"help": "default: learning_rate"})
    unfreeze_mm_vision_tower: bool = field(default=False, metadata={"help": "tune the vision encoder too"})
    mm_vision_tower_lr: float | None = field(default=None, metadata={"help": "default: learning_rate"})
    lora_enable: bool = field(default=False, metadata={"help": "LoRA on the language model's linear layers"})
    lora_r: int = field(default=64, metadata={"help": "rank"})
    lora_alpha: int = field(default=16, metadata={"help": "scale is lora_alpha / lora_r"})
    lora_dropout: float = field(default=0.05, metadata={"help": "on the adapters' inputs"})

    @property
    def projector_rate(self) -> float:
        """The projector's learning rate."""
        return self.learning_rate if self.mm_projector_lr is None else self.mm_projector_lr

    @property
    def tower_rate(self) -> float | None:
        """The vision tower's learning rate, None when it is frozen."""
        if not self.unfreeze_mm_vision_tower:
            return None
        return self.learning_rate if self.mm_vision_tower_lr is None else self.mm_vision_tower_lr


def add_lora(model: SparseVLMForConditionalGeneration, args: InstructArguments) -> tuple[PeftModel, list[Part]]:
    """LoRA on every linear layer of the language model (never in the vision tower); the projector, and the tower if it
    is unfrozen, train in full and travel with the adapter's checkpoints."""
    language = model.model.language_model
    leaves = sorted({name.rpartition(".")[2] for name, m in language.named_modules() if isinstance(m, nn.Linear)})
    whole = ["multi_modal_projector"] + ["vision_tower"] * args.unfreeze_mm_vision_tower
    config = LoraConfig(
        r=args.lora_r,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        target_modules=rf".*\.language_model\..*\.({'|'.join(map(re.escape, leaves))})",
        modules_to_save=whole,
        task_type="CAUSAL_LM",
    )
    set_seed(args.seed)  # the adapter's start is the same whatever random numbers loading took
    wrapped = get_peft_model(model, config)
    groups: dict[str, list[nn.Parameter]] = {"lora": [], "projector": [], "vision tower": [], "frozen": []}
    for name, parameter in wrapped.named_parameters():
        if not parameter.requires_grad:
            groups["frozen"].append(parameter)
        elif ".multi_modal_projector." in name:
            groups["projector"].append(parameter)
        else:
            groups["vision tower" if ".vision_tower." in name else "lora"].append(parameter)
    rates = {"lora": args.learning_rate, "projector": args.projector_rate, "vision tower": args.tower_rate}
    return wrapped, [Part(name, tuple(group), rates.get(name)) for name, group in groups.items() if group]


def merge_lora(adapter: Path, model_args: vlm.ModelArguments) -> None:
    """Replaces the adapter directory by the complete model: the starting model with the adapter merged into it."""
    unset_hf_deepspeed_config()  # this process alone loads, nothing may be sharded
    base, processor = load_vlm(model_args.model_name_or_path, dtype=torch.float32)
    merged = PeftModel.from_pretrained(base, str(adapter)).merge_and_unload()
    shutil.rmtree(adapter)
    merged.save_pretrained(adapter)
    processor.save_pretrained(adapter)


def instruct(model_args: vlm.ModelArguments, data_args: vlm.DataArguments, args: InstructArguments) -> None:
    """Runs the stage."""
    model, processor = vlm.load(model_args, args)
    dataset, collator = vlm.make_data(data_args, args, model, processor, language=True)
    if args.lora_enable:
        wrapped, parts = add_lora(model, args)
        saved = vlm.train(wrapped, parts, args, dataset, collator, processor)
        if args.process_index == 0:
            merge_lora(saved, model_args)
    else:
        parts = vlm.vlm_parts(model, tower=args.tower_rate, projector=args.projector_rate, language=args.learning_rate)
        saved = vlm.train(model, parts, args, dataset, collator, processor)
    vlm.finish(saved, args)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = HfArgumentParser([vlm.ModelArguments, vlm.DataArguments, InstructArguments])  # type: ignore[list-item]
    return exit_with_sentence(lambda: instruct(*parser.parse_args_into_dataclasses(argv)))


if __name__ == "__main__":
    sys.exit(main())
