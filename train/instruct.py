"""Tune the projector and the language model on conversations: in full, with LoRA or with QLoRA.

    python -m train.instruct --model_name_or_path ALIGNED --data_path chats.json --image_folder IMAGES \\
        --output_dir OUT --learning_rate 2e-5 --mm_projector_lr 2e-5 --per_device_train_batch_size 16
    deepspeed --num_gpus 8 --module train.instruct --deepspeed train/configs/deepspeed/zero3.json \\
        --bf16 True --lora_enable True ...

A YAML or JSON file of options may come first; those of the command line override it.
Input: a directory of `train.align`. Output: OUT is a directory of the same kind (LoRA merged), plus log.jsonl.
Docs: docs/training.md.
"""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import set_seed

from sparse_vlm.errors import UserError
from sparse_vlm.vlm.language.quantization import KINDS
from sparse_vlm.vlm.modeling import SparseVLMForConditionalGeneration
from train.language import qlora, vlm
from train.language.data import make_data
from train.language.data_arguments import DataArguments
from train.stages.command_line import check_ranges, run_command
from train.stages.stage import ParameterGroup, StageArguments


@dataclass
class InstructArguments(StageArguments):
    """LLaVA's options for what trains, and how fast. `learning_rate` is the language model's."""

    mm_projector_lr: float | None = field(
        default=None, metadata={"help": "learning rate of the projector (default: --learning_rate)"}
    )
    unfreeze_mm_vision_tower: bool = field(default=False, metadata={"help": "train the vision tower too"})
    mm_vision_tower_lr: float | None = field(
        default=None, metadata={"help": "learning rate of the vision tower (default: --learning_rate)"}
    )
    tune_focusing: bool = field(
        default=False,
        metadata={"help": "train the encoder's stem and focusing transformer, alone or with their own learning rate"},
    )
    mm_focusing_lr: float | None = field(
        default=None, metadata={"help": "learning rate of --tune_focusing (default: --mm_vision_tower_lr)"}
    )
    lora_enable: bool = field(default=False, metadata={"help": "LoRA on the language model's linear layers"})
    lora_r: int = field(default=64, metadata={"help": "rank of LoRA"})
    lora_alpha: int = field(default=16, metadata={"help": "LoRA is scaled by lora_alpha / lora_r"})
    lora_dropout: float = field(default=0.05, metadata={"help": "dropout on the adapters' inputs"})
    bits: int = field(default=16, metadata={"help": "4: QLoRA, the frozen language model in 4 bits; 16: off"})
    quant_type: str = field(default="nf4", metadata={"help": f"4-bit format of --bits 4: {' | '.join(KINDS)}"})
    double_quant: bool = field(default=True, metadata={"help": "with --bits 4, quantise the scales as well"})

    def __post_init__(self) -> None:
        super().__post_init__()
        rates = dict.fromkeys(("mm_projector_lr", "mm_vision_tower_lr", "mm_focusing_lr"), "[0, inf)")
        check_ranges(self, rates | {"lora_r": "[1, inf)", "lora_alpha": "(0, inf)", "lora_dropout": "[0, 1)"})
        if self.bits not in (4, 16):
            raise UserError(f"--bits must be 4 or 16, got {self.bits}.")
        if self.bits == 4 and not self.lora_enable:
            raise UserError("--bits 4 freezes the language model: add --lora_enable True.")
        if self.mm_focusing_lr is not None and not self.tune_focusing:
            raise UserError("--mm_focusing_lr needs --tune_focusing True.")

    @property
    def projector_rate(self) -> float:
        """The projector's learning rate."""
        return self.learning_rate if self.mm_projector_lr is None else self.mm_projector_lr

    @property
    def tower_rate(self) -> float | None:
        """The vision tower's learning rate; None: frozen."""
        return self._vision_rate if self.unfreeze_mm_vision_tower else None

    @property
    def focusing_rate(self) -> float | None:
        """The learning rate of --tune_focusing; None: stem and focusing transformer belong to the tower."""
        if not self.tune_focusing:
            return None
        return self._vision_rate if self.mm_focusing_lr is None else self.mm_focusing_lr

    @property
    def _vision_rate(self) -> float:
        return self.learning_rate if self.mm_vision_tower_lr is None else self.mm_vision_tower_lr


def parameter_groups(model: SparseVLMForConditionalGeneration, args: InstructArguments) -> list[ParameterGroup]:
    """Return the parameter groups without LoRA: the language model and the projector train, the tower on request."""
    return vlm.vlm_groups(
        model,
        tower=args.tower_rate,
        focusing=args.focusing_rate,
        projector=args.projector_rate,
        language=args.learning_rate,
    )


def add_lora(
    model: SparseVLMForConditionalGeneration, args: InstructArguments
) -> tuple[PeftModel, list[ParameterGroup]]:
    """Put LoRA on every linear layer of the language model, never of the vision tower; return the parameter groups.

    LoRA trains in place of the language model's own weights. The projector, and on request the tower, train in full
    and are part of the adapter's checkpoints.
    """
    language = model.model.language_model
    leaves = sorted({name.rpartition(".")[2] for name, m in language.named_modules() if isinstance(m, nn.Linear)})
    config = LoraConfig(
        r=args.lora_r,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        target_modules=rf".*\.language_model\..*\.({'|'.join(map(re.escape, leaves))})",
        modules_to_save=_trained_in_full(model, args),
        task_type="CAUSAL_LM",
    )
    set_seed(args.seed)  # the adapter's start must not depend on random numbers drawn while loading
    wrapped = get_peft_model(model, config)
    groups: dict[str, list[nn.Parameter]] = {
        name: [] for name in ("lora", "projector", "focusing", "vision tower", "frozen")
    }
    for name, parameter in wrapped.named_parameters():
        if not parameter.requires_grad:
            groups["frozen"].append(parameter)
        elif ".multi_modal_projector." in name:
            groups["projector"].append(parameter)
        elif ".vision_tower." not in name:
            groups["lora"].append(parameter)
        else:
            focusing = args.tune_focusing and re.search(r"\.vision_tower\..*\b(stem|focus)\.", name)
            groups["focusing" if focusing else "vision tower"].append(parameter)
    rates = {
        "lora": args.learning_rate,
        "projector": args.projector_rate,
        "focusing": args.focusing_rate,
        "vision tower": args.tower_rate,
    }
    return wrapped, [ParameterGroup(name, tuple(group), rates.get(name)) for name, group in groups.items() if group]


def _trained_in_full(model: SparseVLMForConditionalGeneration, args: InstructArguments) -> list[str]:
    """Return peft's `modules_to_save`."""
    if args.tune_focusing:
        vlm.focusing_parameters(model)  # raises if there are none
    if args.unfreeze_mm_vision_tower:
        return ["multi_modal_projector", "vision_tower"]
    return ["multi_modal_projector"] + ["encoder.stem", "encoder.focus"] * args.tune_focusing


def instruct(model_args: vlm.ModelArguments, data_args: DataArguments, args: InstructArguments) -> None:
    """Run the stage."""
    quantization = qlora.qlora_config(args.quant_type, args.double_quant, args) if args.bits == 4 else None
    model, processor = vlm.load(model_args, args, quantization)
    tower = args.tower_rate is not None or args.focusing_rate is not None
    data = make_data(data_args, args, model, processor, language=True, tower=tower)
    if args.lora_enable:
        wrapped, groups = add_lora(model, args)
        vlm.train(wrapped, groups, model_args, args, data, processor)
    else:
        vlm.train(model, parameter_groups(model, args), model_args, args, data, processor)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status."""
    classes = (vlm.ModelArguments, DataArguments, InstructArguments)
    return run_command("train.instruct", __doc__, classes, instruct, argv)


if __name__ == "__main__":
    sys.exit(main())
