"""The arguments of every training stage."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from transformers import TrainingArguments
from transformers.integrations import get_available_reporting_integrations

from sparse_vlm.errors import UserError, one_line, unknown_choice
from train.stages.command_line import check_ranges
from train.stages.log import LOG_NAME
from train.stages.precision import with_autocast

RANGES = {  # outside them transformers and torch fail with a traceback, some only when training has begun
    "per_device_train_batch_size": "[1, inf)",
    "per_device_eval_batch_size": "[1, inf)",
    "gradient_accumulation_steps": "[1, inf)",
    "global_batch_size": "[1, inf)",
    "num_train_epochs": "[0, inf)",
    "learning_rate": "[0, inf)",
    "weight_decay": "[0, inf)",
    "warmup_ratio": "[0, 1)",
    "eval_steps": "(0, inf)",  # transformers would take 0 for --logging_steps
    "dataloader_num_workers": "[0, inf)",
    "seed": "[0, 4294967295]",
}


@dataclass
class StageArguments(TrainingArguments):
    """transformers' TrainingArguments with this project's defaults. --bf16 is autocast, with DeepSpeed as without."""

    output_dir: str = field(kw_only=True, metadata={"help": "the stage's result, its log, its checkpoints"})
    optim: str = field(default="adamw_torch", metadata={"help": "any of transformers' optimizers"})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "as in LLaVA"})
    logging_steps: float = field(default=1, metadata={"help": f"how often a line goes to {LOG_NAME}"})
    save_total_limit: int | None = field(default=1, metadata={"help": "checkpoints kept while running"})
    remove_unused_columns: bool = field(default=False, metadata={"help": "our collators use every field"})
    report_to: str = field(default="none", metadata={"help": "e.g. tensorboard"})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "True would hide that training diverges"})
    keep_checkpoints: bool = field(default=False, metadata={"help": "keep checkpoint-N after the stage's end"})
    num_processes: int | None = field(
        default=None, metadata={"help": "stop unless exactly so many processes train (some launchers start fewer)"}
    )
    global_batch_size: int | None = field(
        default=None, metadata={"help": "stop unless a step has so many samples: batch · accumulation · processes"}
    )
    warmup_ratio: float | None = field(default=None, metadata={"help": "LLaVA's name for a warmup_steps below 1"})

    def __post_init__(self) -> None:
        check_ranges(self, RANGES)
        if self.logging_nan_inf_filter:
            raise UserError(
                "--logging_nan_inf_filter True would put a finite number in the place of a loss that is none, and hide "
                "that training diverges. Leave it out."
            )
        if self.bf16 and self.deepspeed:
            self.bf16, self.deepspeed = False, with_autocast(self.deepspeed)
        try:
            super().__post_init__()
        except json.JSONDecodeError as error:
            raise UserError(f"An argument is no valid JSON: {error.doc} ({error.msg}).") from error
        except ValueError as error:  # transformers' checks of values that do not go together
            raise UserError(one_line(error)) from error
        installed = get_available_reporting_integrations() if self.report_to else []
        for program in self.report_to:
            if program not in installed:
                raise unknown_choice("or not installed: --report_to", program, ["none", *installed])
        if self.warmup_ratio is not None:
            self.warmup_steps = self.warmup_ratio

    def refuse_full_eval(self) -> None:
        """For stages whose evaluations are those of training, in its precision.

        Raises:
            UserError: another precision is asked for.
        """
        for name in ("bf16_full_eval", "fp16_full_eval"):
            if getattr(self, name):
                raise UserError(f"--{name} would change nothing: this stage measures in its training's precision.")

    def require_metric(self, names: Sequence[str], absent: Mapping[str, str]) -> None:
        """Whether evaluations while training measure --metric_for_best_model.

        Args:
            names: of what the stage's evaluations can measure.
            absent: those of them that this run cannot measure -> why.

        Raises:
            UserError: they do not.
        """
        if self.eval_strategy == "no" or self.metric_for_best_model is None:
            return
        name = self.metric_for_best_model.removeprefix("eval_")
        if name in absent:
            raise UserError(f"--metric_for_best_model {name} cannot be measured: {absent[name]}.")
        if name not in names:
            raise unknown_choice("--metric_for_best_model", name, names)

    @property
    def order_seed(self) -> int:
        """Of the images' order and augmentation: --data_seed, or else --seed."""
        return self.seed if self.data_seed is None else self.data_seed
