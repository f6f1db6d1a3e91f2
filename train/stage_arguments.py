"""The arguments of every training stage."""

from dataclasses import dataclass, field

from transformers import TrainingArguments

from sparse_vlm.errors import UserError
from train.log import LOG_NAME
from train.precision import with_autocast


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
    keep_checkpoints: bool = field(default=False, metadata={"help": "keep checkpoint-N after the stage's end"})
    num_processes: int | None = field(
        default=None, metadata={"help": "stop unless exactly so many processes train (some launchers start fewer)"}
    )
    warmup_ratio: float | None = field(default=None, metadata={"help": "LLaVA's name for a warmup_steps below 1"})

    def __post_init__(self) -> None:
        if self.bf16 and self.deepspeed:
            self.bf16, self.deepspeed = False, with_autocast(self.deepspeed)
        try:
            super().__post_init__()
        except ValueError as error:  # transformers' checks of values that do not go together
            raise UserError(str(error)) from error
        if self.warmup_ratio is not None:
            self.warmup_steps = self.warmup_ratio

    @property
    def order_seed(self) -> int:
        """Of the images' order and augmentation: --data_seed, or else --seed."""
        return self.seed if self.data_seed is None else self.data_seed
