"""The trainer of the stages of a VLM: batches of like lengths, checkpoints that hold what trains and nothing else."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import Dataset, Sampler
from transformers.trainer_pt_utils import LengthGroupedSampler

from sparse_vlm.data.dataset import ConversationDataset
from sparse_vlm.errors import UserError
from train.stage import StageTrainer

TRAINED_FILE = "trained.safetensors"


class ConversationTrainer(StageTrainer):
    """StageTrainer that groups rows by length without reading their images (group_by_length), and whose checkpoints
    leave out the frozen weights, which the starting model has: TRAINED_FILE, of an adapter peft's own files, under
    DeepSpeed what `exclude_frozen_parameters` writes."""

    _in_checkpoint = False

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy != "group_by_length" or not isinstance(dataset, ConversationDataset):
            return super()._get_train_sampler(train_dataset)
        batch = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return LengthGroupedSampler(batch, lengths=dataset.lengths())

    def _save_checkpoint(self, *args: Any, **options: Any) -> None:
        self._in_checkpoint = True
        try:
            super()._save_checkpoint(*args, **options)
        finally:
            self._in_checkpoint = False

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if self._in_checkpoint and self.is_deepspeed_enabled and not isinstance(self.model, PeftModel):
            return  # a run goes on from DeepSpeed's own files; these would gather a whole model for nothing
        super().save_model(output_dir, _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        if not self._in_checkpoint or isinstance(self.model, PeftModel):
            super()._save(output_dir, state_dict)
        elif self.args.should_save and output_dir is not None:
            model: Any = self.model
            Path(output_dir).mkdir(parents=True, exist_ok=True)
            trained = {name: parameter.detach().contiguous() for name, parameter in _trained(model).items()}
            save_file(trained, Path(output_dir) / TRAINED_FILE)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.is_deepspeed_enabled:
            engine: Any = self.model_wrapped
            engine.save_checkpoint = partial(type(engine).save_checkpoint, engine, exclude_frozen_parameters=True)
        super()._save_optimizer_and_scheduler(output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        target: Any = self.model if model is None else model
        if isinstance(target, PeftModel):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        saved = load_file(Path(resume_from_checkpoint) / TRAINED_FILE)
        trained = _trained(target)
        if saved.keys() != trained.keys():
            name = min(saved.keys() ^ trained.keys())
            raise UserError(
                f"{resume_from_checkpoint} is of a run in which other weights train ({name} …). Choose another "
                "--output_dir, or start with the arguments of that run."
            )
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter.copy_(saved[name])


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights that train, a tied one once."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def keep_frozen_weights(model: nn.Module) -> None:
    """From now on a strict `load_state_dict` (DeepSpeed's) leaves frozen weights that it is not given as they are."""

    def fill(module: nn.Module, state_dict: dict[str, torch.Tensor], prefix: str, *_: object) -> None:
        for name, parameter in module.named_parameters(remove_duplicate=False):
            if not parameter.requires_grad:
                state_dict.setdefault(prefix + name, parameter.data)

    model.register_load_state_dict_pre_hook(fill)
