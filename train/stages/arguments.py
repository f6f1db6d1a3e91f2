"""The arguments of every training stage."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from transformers import TrainingArguments
from transformers.integrations import get_available_reporting_integrations

from sparse_vlm.errors import UserError, one_line, unknown_choice
from train.stages.command_line import check_ranges
from train.stages.log import LOG_NAME
from train.stages.precision import choose_bf16, with_autocast

RANGES = {  # outside them transformers and torch fail with a traceback, sometimes only after training has begun
    "per_device_train_batch_size": "[1, inf)",
    "per_device_eval_batch_size": "[1, inf)",
    "gradient_accumulation_steps": "[1, inf)",
    "global_batch_size": "[1, inf)",
    "num_train_epochs": "[0, inf)",
    "learning_rate": "[0, inf)",
    "weight_decay": "[0, inf)",
    "warmup_ratio": "[0, 1)",
    "eval_steps": "(0, inf)",  # transformers would read 0 as --logging_steps
    "dataloader_num_workers": "[0, inf)",
    "seed": "[0, 4294967295]",
}


@dataclass
class StageArguments(TrainingArguments):
    """transformers' TrainingArguments with this project's defaults. bf16 is autocast, with DeepSpeed as without."""

    bf16: bool = field(  # type: ignore[assignment]  # None is replaced when the object is made
        default=None,
        metadata={
            "help": "bf16 autocast over float32 weights (default: where the processor computes it natively and faster)"
        },
    )

    output_dir: str = field(kw_only=True, metadata={"help": "directory for the result, the log and the checkpoints"})
    optim: str = field(default="adamw_torch", metadata={"help": "optimizer, any of transformers'"})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "schedule of the learning rate"})
    logging_steps: float = field(default=1, metadata={"help": f"steps between lines of {LOG_NAME}"})
    save_total_limit: int | None = field(default=1, metadata={"help": "checkpoints to keep while running"})
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "must stay False: the collators use every field"}
    )
    report_to: str = field(default="none", metadata={"help": "e.g. tensorboard"})
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "must stay False: True would hide divergence"}
    )
    keep_checkpoints: bool = field(default=False, metadata={"help": "keep checkpoint-N when the stage is done"})
    num_processes: int | None = field(
        default=None, metadata={"help": "abort unless this many processes are running (some launchers start fewer)"}
    )
    global_batch_size: int | None = field(
        default=None, metadata={"help": "abort unless a step has this many samples: batch · accumulation · processes"}
    )
    warmup_ratio: float | None = field(
        default=None, metadata={"help": "share of the steps that warm up; LLaVA's name for --warmup_steps below 1"}
    )

    def __post_init__(self) -> None:
        check_ranges(self, RANGES)
        if self.logging_nan_inf_filter:
            raise UserError(
                "--logging_nan_inf_filter True would replace a NaN or infinite loss by a finite number and hide that "
                "training diverges. Leave it out."
            )
        try:
            self.use_cpu = self.device.type == "cpu" or self.use_cpu  # without it, transformers refuses bf16 on a CPU
            if self.bf16 is None:
                self.bf16 = choose_bf16(self)
            if self.bf16 and self.deepspeed:
                self.bf16, self.deepspeed = False, with_autocast(self.deepspeed)
            super().__post_init__()
        except json.JSONDecodeError as error:
            raise UserError(f"An argument is not valid JSON: {error.doc} ({error.msg}).") from error
        except ValueError as error:  # transformers' checks of values that contradict each other
            raise UserError(one_line(error)) from error
        installed = get_available_reporting_integrations() if self.report_to else []
        for program in self.report_to:
            if program not in installed:
                raise unknown_choice("or not installed: --report_to", program, ["none", *installed])
        if self.warmup_ratio is not None:
            self.warmup_steps = self.warmup_ratio

    def refuse_full_eval(self) -> None:
        """For stages that always evaluate in their training's precision.

        Raises:
            UserError: the options ask for another precision.
        """
        for name in ("bf16_full_eval", "fp16_full_eval"):
            if getattr(self, name):
                raise UserError(
                    f"--{name} has no effect: this stage evaluates in its training's precision. Leave it out."
                )

    def require_held_out(self, eval_data_path: str | None) -> None:
        """Check that evaluations during training have held-out data.

        Raises:
            UserError: they do not.
        """
        strategy = getattr(self.eval_strategy, "value", self.eval_strategy)  # an enum that prints as its class
        if strategy != "no" and eval_data_path is None:
            raise UserError(f"--eval_strategy {strategy} needs held-out data: give --eval_data_path.")

    def require_metric(self, names: Sequence[str], absent: Mapping[str, str]) -> None:
        """Check that evaluations during training measure --metric_for_best_model.

        Args:
            names: the stage's metrics.
            absent: metrics that this run cannot measure -> the reason.

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
        """The seed of the samples' order and augmentation: --data_seed, or else --seed."""
        return self.seed if self.data_seed is None else self.data_seed
