"""The trainer of a VLM: order and numbers of visual tokens, checkpoints of the trained weights alone."""

import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import Dataset, Sampler
from transformers.trainer_utils import EvalLoopOutput

from sparse_vlm.data.conversations.dataset import ConversationDataset
from sparse_vlm.errors import UserError
from train.language.order import DrawnOrder, LengthGroups, SeededOrder
from train.language.result import TRAINED_FILE
from train.stages.drawn_counts import DrawnCounts
from train.stages.processes import summed
from train.stages.stage import ParameterGroup, StageArguments
from train.stages.trainer import StageTrainer


class ConversationTrainer(StageTrainer):
    """StageTrainer for conversations.

    - `group_by_length` groups rows by length without reading their images.
    - With `drawn`, each step has its number of visual tokens, and each log line has `visual_tokens`, the mean over the
      steps since the last one.
    - With --check_samples while_reading, each log line has `bad_samples`, the number of times that a bad sample was
      replaced so far, over all processes.
    - `eval_loss` is the mean over all tokens of all answers, independent of the batch size.
    - Frozen weights are never saved, since the starting model has them: checkpoints have TRAINED_FILE, peft's own files
      for an adapter, or DeepSpeed's with `exclude_frozen_parameters`.

    Args:
        groups: as given to `set_trainable`.
        drawn: the number of visual tokens of each step; None: the model's own.
        **trainer: transformers' Trainer arguments.
    """

    args: StageArguments
    _in_checkpoint = False
    _evaluated: tuple[float, int] = (0.0, 0)  # this process' sum of token losses, and number of tokens

    def __init__(
        self,
        groups: Sequence[ParameterGroup],
        *,
        drawn: DrawnCounts | None = None,
        **trainer: Any,
    ) -> None:
        super().__init__(groups, **trainer)
        self.drawn = drawn
        self._counts: list[int] = []  # of the steps since the last log line

    def variant(self) -> dict[str, Any]:
        if self.drawn is None:
            return super().variant()
        return super().variant() | {"visual_tokens": str(self.drawn.counts), "token_density": self.drawn.density}

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        dataset: Any = self.train_dataset if train_dataset is None else train_dataset
        order: Any
        if self.args.train_sampling_strategy == "group_by_length" and isinstance(dataset, ConversationDataset):
            batch = self.args.train_batch_size * self.args.gradient_accumulation_steps
            order = LengthGroups(batch, dataset.lengths(), self.args.order_seed)
        elif self.args.train_sampling_strategy == "random" and self.drawn is not None:
            order = SeededOrder(len(dataset), self.args.order_seed)  # accelerate would seed only a RandomSampler itself
        else:
            order = super()._get_train_sampler(train_dataset)
        return order if self.drawn is None else DrawnOrder(order, self.drawn, self.args)

    def _get_eval_sampler(self, eval_dataset: Dataset) -> Sampler | None:
        return None  # in order; transformers would group these by length too, and look for `input_ids` in each item

    def training_step(self, *args: Any, **options: Any) -> torch.Tensor:
        if self.drawn is not None:
            self._counts.append(self.drawn.count_at(self.state.global_step))
        return super().training_step(*args, **options)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._counts:
            logs["visual_tokens"] = statistics.mean(self._counts)
            self._counts = []
        substitutes = getattr(self.train_dataset, "substitutes", None)
        if "loss" in logs and substitutes is not None:
            logs["bad_samples"] = int(summed(torch.tensor(substitutes.bad.count), self.args))
        super().log(logs, start_time)

    def _run_epoch(self, *args: Any, **options: Any) -> None:
        # When resuming within an epoch, transformers sets the epoch of a loader that skips the seen batches, and with
        # several processes accelerate passes that on only to its own samplers: LengthGroups would use epoch 0's order.
        options["train_dataloader"].set_epoch(options["epoch"])
        super()._run_epoch(*args, **options)

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **options: Any) -> Any:
        tokens = inputs["labels"].numel()
        predicted: Any = super().prediction_step(model, inputs, *args, **options)
        total, count = self._evaluated
        self._evaluated = (total + predicted[0].item() * tokens, count + tokens)
        return predicted

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **options: Any) -> EvalLoopOutput:
        # transformers would average the means of batches.
        self._evaluated = (0.0, 0)
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **options)
        sums: Any = self.accelerator.reduce(torch.tensor(self._evaluated, device=self.args.device), "sum")
        total, tokens = sums.tolist()
        metrics: Any = output.metrics
        metrics[f"{metric_key_prefix}_loss"] = total / tokens
        return output

    def _save_checkpoint(self, *args: Any, **options: Any) -> None:
        self._in_checkpoint = True
        try:
            super()._save_checkpoint(*args, **options)
        finally:
            self._in_checkpoint = False

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if self._in_checkpoint and self.is_deepspeed_enabled and not isinstance(self.model, PeftModel):
            return  # a run resumes from DeepSpeed's own files; these would gather a whole model for nothing
        super().save_model(output_dir, _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        if isinstance(self.model, PeftModel):
            super()._save(output_dir, state_dict)
        elif self.args.should_save and output_dir is not None:
            model: Any = self.model
            Path(output_dir).mkdir(parents=True, exist_ok=True)
            trained = _trained(model)
            values = trained if state_dict is None else state_dict  # ZeRO-3 has gathered them
            weights = {name: values[name].detach().contiguous() for name in trained}
            save_file(weights, Path(output_dir) / TRAINED_FILE)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.is_deepspeed_enabled:
            engine: Any = self.model_wrapped
            engine.save_checkpoint = partial(type(engine).save_checkpoint, engine, exclude_frozen_parameters=True)
        super()._save_optimizer_and_scheduler(output_dir)

    def load_weights(self, checkpoint: str, model: nn.Module) -> None:
        if isinstance(model, PeftModel):
            super().load_weights(checkpoint, model)
            return
        saved = load_file(Path(checkpoint) / TRAINED_FILE)
        trained = _trained(model)
        if saved.keys() != trained.keys():
            name = min(saved.keys() ^ trained.keys())
            raise UserError(
                f"{checkpoint} belongs to a run that trains other weights ({name} …). Choose another "
                "--output_dir, or start with the arguments of that run."
            )
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter.copy_(saved[name])


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trained weights, a tied one once."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def keep_frozen_weights(model: nn.Module) -> None:
    """Let a strict `load_state_dict` (DeepSpeed's) keep the frozen weights that the state dict lacks."""

    def fill(module: nn.Module, state_dict: dict[str, torch.Tensor], prefix: str, *_: object) -> None:
        for name, parameter in module.named_parameters(remove_duplicate=False):
            if not parameter.requires_grad:
                state_dict.setdefault(prefix + name, parameter.data)

    model.register_load_state_dict_pre_hook(fill)
