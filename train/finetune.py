"""Supervised fine-tuning of a bootstrapped encoder: one class per image, or several.

    python -m train.finetune --encoder ENCODER_DIR --data_path CLASS_FOLDERS --eval_data_path CLASS_FOLDERS \\
        --output_dir OUT --learning_rate 5e-4 --weight_decay 0.05 --num_train_epochs 20 --warmup_ratio 0.1
    python -m train.finetune --encoder ENCODER_DIR --data_path IMAGES --label_file train.csv \\
        --eval_data_path IMAGES --eval_label_file test.csv --output_dir OUT ...

Output: OUT is an encoder directory whose `pooled` are the logits, plus classes.json, log.jsonl and, with
--eval_data_path, metrics.json (top-1, or the AUROC of each class). Docs: docs/finetuning.md.
"""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file, as deepspeed does
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch.nn.functional as F
from timm.data import Mixup
from timm.models import group_parameters
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import default_data_collator

from sparse_vlm.data.labels import LabelledImages, Labels, read_class_folders, read_label_table
from sparse_vlm.data.loader import train_loader
from sparse_vlm.data.sources import augmentation
from sparse_vlm.encoder.preprocessing import Transform
from sparse_vlm.errors import UserError, exit_with_sentence
from sparse_vlm.files import new_directory, write_json
from sparse_vlm.timm_models import TimmSparseFormer, create_from_directory
from train.arguments import parse_arguments
from train.classification import auroc_of, top_1
from train.stage import Part, StageArguments, StageTrainer, prepare, publish, refuse_zero3, run, what_trains

logger = logging.getLogger(__name__)
CLASSES_FILE, METRICS_FILE = "classes.json", "metrics.json"


@dataclass
class FinetuneArguments:
    """Encoder, data and regularisation; the names are timm's where timm has one."""

    encoder: str = field(metadata={"help": "encoder directory (`SparseFormer.save_pretrained`)"})
    data_path: str = field(metadata={"help": "a folder with a folder per class; with --label_file: the image folder"})
    label_file: str | None = field(default=None, metadata={"help": "CSV: image, then 0 or 1 per class (multi-label)"})
    eval_data_path: str | None = field(default=None, metadata={"help": "the same for held-out images"})
    eval_label_file: str | None = field(default=None, metadata={"help": "the same for held-out images"})
    on_bad_image: str = field(default="error", metadata={"help": "error | skip (counted and reported)"})
    layer_decay: float = field(default=0.75, metadata={"help": "a layer's learning rate, times that of the next"})
    drop_path: float = field(default=0.1, metadata={"help": "stochastic depth of the last block"})
    drop: float = field(default=0.0, metadata={"help": "dropout before the head"})
    smoothing: float = field(default=0.1, metadata={"help": "label smoothing"})
    min_crop_area: float = field(default=0.35, metadata={"help": "smallest share of a picture that a crop keeps"})
    rand_augment_ops: int = field(default=2, metadata={"help": "RandAugment's operations per image; 0: off"})
    rand_augment_magnitude: int = field(default=9, metadata={"help": "their strength, 0 … 30"})
    reprob: float = field(default=0.0, metadata={"help": "random erasing: share of the images"})
    mixup: float = field(default=0.0, metadata={"help": "alpha of mixup; 0: off"})
    cutmix: float = field(default=0.0, metadata={"help": "alpha of cutmix; 0: off"})


class FinetuneTask(nn.Module):
    """Images and labels in, loss and logits out.

    Args:
        model: its head has an output per class.
        several: whether an image may have several classes (binary cross-entropy) or has one (cross-entropy).
        smoothing: label smoothing, in training only.
        mixup: mixes the images of a batch in training, smoothing included; None: off.
    """

    def __init__(self, model: TimmSparseFormer, *, several: bool, smoothing: float, mixup: Mixup | None = None) -> None:
        super().__init__()
        self.model, self.several, self.smoothing, self.mixup = model, several, smoothing, mixup

    def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """float[B, 3, H, W] and int64[B] or float[B, K] -> {"loss": float[], "logits": float[B, K]}."""
        smoothing = self.smoothing if self.training else 0.0
        if self.mixup is not None and self.training:
            pixel_values, labels = self.mixup(pixel_values, labels)
            smoothing = 0.0  # it is in the labels
        logits = self.model(pixel_values).float()
        if self.several:
            loss = F.binary_cross_entropy_with_logits(logits, labels * (1 - smoothing) + smoothing / 2)
        else:
            loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
        return {"loss": loss, "logits": logits}


class FinetuneTrainer(StageTrainer):
    """StageTrainer whose order and augmentation a resumed run continues, with the same classes and encoder."""

    def get_train_dataloader(self) -> DataLoader:
        assert isinstance(self.train_dataset, LabelledImages)
        return train_loader(self.train_dataset, self.args, self.data_collator, self._train_batch_size)

    def variant(self) -> dict[str, Any]:
        assert isinstance(self.train_dataset, LabelledImages)
        task: Any = self.model
        labels = self.train_dataset.labels
        return {"classes": labels.classes, "several_per_image": labels.several, "encoder": task.model.config.to_dict()}


def parts_of(model: TimmSparseFormer, learning_rate: float, layer_decay: float) -> list[Part]:
    """A part per layer of `group_matcher`; the head has `learning_rate`, each layer before it `layer_decay` times that
    of the next."""
    layers = group_parameters(model, model.group_matcher(), return_values=True)
    top = max(layers)
    return [
        Part(
            f"layer {layer}" if layer < top else "head",
            tuple(layers[layer]),
            learning_rate * layer_decay ** (top - layer),
        )
        for layer in sorted(layers)
    ]


def read_labels(arguments: FinetuneArguments) -> tuple[Labels, Labels | None]:
    """Labelled images to train on, and the held-out ones.

    Raises:
        UserError: something is missing or malformed, or the two have different classes.
    """

    def read(folder: str, table: str | None) -> Labels:
        return read_class_folders(folder) if table is None else read_label_table(table, folder)

    labels = read(arguments.data_path, arguments.label_file)
    if arguments.eval_data_path is None:
        return labels, None
    if (arguments.label_file is None) != (arguments.eval_label_file is None):
        raise UserError("--label_file and --eval_label_file go together: give both, or none.")
    held_out = read(arguments.eval_data_path, arguments.eval_label_file)
    if held_out.classes != labels.classes:
        raise UserError(
            f"The held-out images have the classes {', '.join(held_out.classes)}, "
            f"those to train on {', '.join(labels.classes)}."
        )
    return labels, held_out


def make_mixup(arguments: FinetuneArguments, labels: Labels, args: StageArguments) -> Mixup | None:
    """timm's mixup and cutmix.

    Raises:
        UserError: several labels per image, or batches that cannot be paired.
    """
    if arguments.mixup == 0 and arguments.cutmix == 0:
        return None
    if labels.several:
        raise UserError("--mixup and --cutmix are for one class per image. Leave them out with --label_file.")
    if args.train_batch_size % 2 or not args.dataloader_drop_last:
        raise UserError(
            "--mixup and --cutmix pair the images of a batch: give an even --per_device_train_batch_size (it is "
            f"{args.train_batch_size}) and --dataloader_drop_last True."
        )
    return Mixup(
        arguments.mixup, arguments.cutmix, label_smoothing=arguments.smoothing, num_classes=len(labels.classes)
    )


def make_trainer(arguments: FinetuneArguments, args: StageArguments) -> FinetuneTrainer:
    """Opens data and encoder, gives it a new head.

    Raises:
        UserError: data, encoder or settings are wrong.
    """
    labels, held_out = read_labels(arguments)
    mixup = make_mixup(arguments, labels, args)
    model = create_from_directory(arguments.encoder, drop_rate=arguments.drop, drop_path_rate=arguments.drop_path)
    model.reset_classifier(len(labels.classes))
    task = FinetuneTask(model, several=labels.several, smoothing=arguments.smoothing, mixup=mixup)
    parts = parts_of(model, args.learning_rate, arguments.layer_decay)
    logger.warning("What trains:\n%s", what_trains(task, parts))
    preprocessing = model.config.preprocessing
    transform = augmentation(
        preprocessing,
        arguments.min_crop_area,
        rand_augment_ops=arguments.rand_augment_ops,
        rand_augment_magnitude=arguments.rand_augment_magnitude,
        random_erasing=arguments.reprob,
    )
    bad = arguments.on_bad_image
    return FinetuneTrainer(
        parts,
        model=task,
        args=args,
        train_dataset=LabelledImages(labels, transform, seed=args.seed, on_bad_image=bad),
        eval_dataset=held_out and LabelledImages(held_out, Transform(preprocessing), on_bad_image=bad),
        data_collator=default_data_collator,
        compute_metrics=auroc_of(labels.classes) if labels.several else top_1,
    )


def finetune(arguments: FinetuneArguments, args: StageArguments) -> None:
    """Runs the stage."""
    prepare(args)
    refuse_zero3()
    trainer: Any = make_trainer(arguments, args)
    run(trainer)
    metrics = trainer.evaluate() if trainer.eval_dataset is not None else None
    if args.process_index != 0:
        return
    labels = trainer.train_dataset.labels
    saved = Path(args.output_dir) / ".finished"
    with new_directory(saved) as directory:
        trainer.model.model.save_pretrained(directory)
        write_json(directory / CLASSES_FILE, {"classes": labels.classes, "several_per_image": labels.several})
        if metrics is not None:
            chosen = {
                name.removeprefix("eval_"): metrics[name] for name in metrics if "auroc" in name or "top1" in name
            }
            write_json(directory / METRICS_FILE, chosen | {"images": len(trainer.eval_dataset)})
    publish(saved, Path(args.output_dir), keep_checkpoints=args.keep_checkpoints)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    words = sys.argv[1:] if argv is None else argv
    return exit_with_sentence(lambda: finetune(*parse_arguments((FinetuneArguments, StageArguments), words)))


if __name__ == "__main__":
    sys.exit(main())
