"""Supervised fine-tuning of a bootstrapped encoder: one class per image, or several.

    python -m train.finetune --encoder ENCODER_DIR --data_path CLASS_FOLDERS --eval_data_path CLASS_FOLDERS \\
        --output_dir OUT --learning_rate 5e-4 --weight_decay 0.05 --num_train_epochs 20 --warmup_ratio 0.1
    python -m train.finetune --encoder ENCODER_DIR --data_path IMAGES --label_file train.csv \\
        --eval_data_path IMAGES --eval_label_file test.csv --output_dir OUT ...

Output: OUT is an encoder directory whose `pooled` are the logits, plus classes.json, log.jsonl and, with
--eval_data_path, metrics.json (top-1, or the AUROC of each class). Docs: docs/encoder/finetuning.md.
"""

import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file, as deepspeed does
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch.nn.functional as F
from timm.data import Mixup
from timm.models import group_parameters
from torch import Tensor, nn
from transformers import default_data_collator

from sparse_vlm.data.images.augmentation import augmentation
from sparse_vlm.data.images.labels import LabelledImages, Labels, read_class_folders, read_label_table
from sparse_vlm.data.images.sets import HeldOutImages
from sparse_vlm.encoder.preprocessing import Transform
from sparse_vlm.errors import UserError, exit_with_sentence, some_of
from sparse_vlm.files import new_directory, write_json
from sparse_vlm.integrations.timm import TimmSparseFormer, create_from_directory
from sparse_vlm.recompute import recompute_blocks
from train.stages.arguments import StageArguments
from train.stages.command_line import parse_arguments
from train.stages.stage import Part, prepare, publish, refuse_zero3, run, say_what_trains
from train.vision.classification import auroc_of, metric_names, of_readable, top_1, undefined_metrics
from train.vision.finetune_arguments import FinetuneArguments
from train.vision.image_trainer import ImageTrainer

logger = logging.getLogger(__name__)
CLASSES_FILE, METRICS_FILE = "classes.json", "metrics.json"


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

    def activation_checkpointing_enable(
        self,
        activation_checkpointing_kwargs: Mapping[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """What transformers' Trainer calls, see `recompute_blocks`."""
        recompute_blocks(self.model.cortex, activation_checkpointing_kwargs, every_n_layers, offload)

    def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """float[B, 3, H, W] and int64[B] or float[B, K] -> {"loss": float[], "logits": float[B, K]}."""
        smoothing = self.smoothing if self.training else 0.0
        if self.mixup is not None and self.training:
            pixel_values, labels = self.mixup(pixel_values, labels)
            smoothing = 0.0  # it is in the labels
        logits = self.model(pixel_values).float()
        return {"loss": self.loss(logits, labels, smoothing), "logits": logits}

    def loss(self, logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
        """Mean over the images: float[]."""
        if self.several:
            return F.binary_cross_entropy_with_logits(logits, labels * (1 - smoothing) + smoothing / 2)
        return F.cross_entropy(logits, labels, label_smoothing=smoothing)


class FinetuneTrainer(ImageTrainer):
    """ImageTrainer that goes on with the same classes and encoder only, and measures what can be read.

    Args:
        parts: as given to `what_trains`.
        task: the model.
        images: to train on.
        held_out: to measure with; None: nothing is measured.
        **trainer: transformers' Trainer arguments; compute_metrics is from `of_readable`.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        *,
        task: FinetuneTask,
        images: LabelledImages,
        held_out: HeldOutImages | None,
        **trainer: Any,
    ) -> None:
        super().__init__(parts, images=images, model=task, eval_dataset=held_out, **trainer)
        self.task, self.labels, self.held_out = task, images.labels, held_out

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[None, Any, Any]:
        # transformers would average a batch's loss over its unreadable images too: the loss is among the metrics
        readable = self._prepare_input(inputs.pop("readable"))
        _, logits, labels = super().prediction_step(model, inputs, False, ignore_keys)
        return None, logits, (labels, readable)

    def variant(self) -> dict[str, Any]:
        labels = {"classes": self.labels.classes, "several_per_image": self.labels.multi_label}
        return super().variant() | labels | {"encoder": self.task.model.config.to_dict()}


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
        raise _other_classes(held_out.classes, labels.classes)
    return labels, held_out


def _other_classes(held: Sequence[str], known: Sequence[str]) -> UserError:
    if set(held) == set(known):
        return UserError("The held-out images have the classes of those to train on in another order.")
    only, counts = (held, known), ""
    if len(held) + len(known) > 20:
        only = [name for name in held if name not in known], [name for name in known if name not in held]
        counts = f", which the others do not have ({len(held)} and {len(known)} in all)"
    return UserError(
        f"The held-out images have the classes {some_of(only[0])}, those to train on {some_of(only[1])}{counts}."
    )


def make_mixup(arguments: FinetuneArguments, labels: Labels, args: StageArguments) -> Mixup | None:
    """timm's mixup and cutmix.

    Raises:
        UserError: several labels per image, or batches that cannot be paired.
    """
    if arguments.mixup == 0 and arguments.cutmix == 0:
        return None
    if labels.multi_label:
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
    if args.eval_strategy != "no" and held_out is None:
        raise UserError("Evaluation while training needs held-out images: give --eval_data_path.")
    if held_out is not None:
        args.require_metric(metric_names(held_out), undefined_metrics(held_out))
    mixup = make_mixup(arguments, labels, args)
    model = create_from_directory(arguments.encoder, drop_rate=arguments.drop, drop_path_rate=arguments.drop_path)
    model.reset_classifier(len(labels.classes))
    task = FinetuneTask(model, several=labels.multi_label, smoothing=arguments.smoothing, mixup=mixup)
    parts = parts_of(model, args.learning_rate, arguments.layer_decay)
    say_what_trains(task, parts, args)
    preprocessing = model.config.preprocessing
    transform = augmentation(
        preprocessing,
        arguments.min_crop_area,
        rand_augment_ops=arguments.rand_augment_ops,
        rand_augment_magnitude=arguments.rand_augment_magnitude,
        random_erasing=arguments.reprob,
    )
    bad, measured = arguments.on_bad_image, None
    if held_out is not None:
        measured = HeldOutImages(LabelledImages(held_out, Transform(preprocessing), on_bad_image=bad))
    return FinetuneTrainer(
        parts,
        task=task,
        args=args,
        images=LabelledImages(labels, transform, seed=args.order_seed, on_bad_image=bad),
        held_out=measured,
        data_collator=default_data_collator,
        compute_metrics=of_readable(auroc_of(labels.classes) if labels.multi_label else top_1, task.loss),
    )


def finetune(arguments: FinetuneArguments, args: StageArguments) -> None:
    """Runs the stage."""
    prepare(args)
    refuse_zero3()
    trainer = make_trainer(arguments, args)
    run(trainer)
    metrics = None if trainer.held_out is None else trainer.evaluate()
    if args.process_index != 0:
        return
    labels = trainer.labels
    saved = Path(args.output_dir) / ".finished"
    with new_directory(saved) as directory:
        trainer.task.model.save_pretrained(directory)
        write_json(directory / CLASSES_FILE, {"classes": labels.classes, "several_per_image": labels.multi_label})
        if metrics is not None:
            measured = {name.removeprefix("eval_"): value for name, value in metrics.items()}
            chosen = [name for name in measured if name.startswith(("auroc", "top1"))] + ["images", "unreadable"]
            write_json(directory / METRICS_FILE, {name: measured[name] for name in chosen})
    publish(saved, Path(args.output_dir), create_from_directory, keep_checkpoints=args.keep_checkpoints)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    words = sys.argv[1:] if argv is None else argv
    return exit_with_sentence(lambda: finetune(*parse_arguments((FinetuneArguments, StageArguments), words)))


if __name__ == "__main__":
    sys.exit(main())
