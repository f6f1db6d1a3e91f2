"""Fine-tune a bootstrapped encoder on labelled images: one class per image, or several.

    python -m train.finetune --encoder ENCODER_DIR --data_path CLASS_FOLDERS --eval_data_path CLASS_FOLDERS \\
        --output_dir OUT --learning_rate 5e-4 --weight_decay 0.05 --num_train_epochs 20 --warmup_ratio 0.1
    python -m train.finetune --encoder ENCODER_DIR --data_path IMAGES --label_file train.csv \\
        --eval_data_path IMAGES --eval_label_file test.csv --output_dir OUT ...

Output: OUT is an encoder directory whose `pooled` are the logits, plus classes.json, log.jsonl and, with
--eval_data_path, metrics.json (top-1, or the AUROC of each class); with --test_data_path also test_metrics.json. Docs:
docs/encoder/finetuning.md.
"""

import sys
from collections.abc import Sequence

from timm.models import group_parameters
from transformers import default_data_collator

from sparse_vlm.data.images.augmentation import augmentation
from sparse_vlm.data.images.labels import LabelledImages, Labels
from sparse_vlm.data.images.sets import HeldOutImages
from sparse_vlm.encoder.preprocessing import Transform
from sparse_vlm.files import write_json
from sparse_vlm.integrations.timm import TimmSparseFormer, create_from_directory
from train.stages.arguments import StageArguments
from train.stages.command_line import run_command
from train.stages.stage import ParameterGroup, finished_model, log_trainable, prepare, refuse_zero3, run
from train.vision.classification import auroc_metric, metric_names, over_readable, top_1, undefined_metrics
from train.vision.finetune_arguments import FinetuneArguments
from train.vision.finetune_data import make_mixup, read_labels
from train.vision.finetune_trainer import FinetuneTask, FinetuneTrainer


def layer_groups(model: TimmSparseFormer, learning_rate: float, layer_decay: float) -> list[ParameterGroup]:
    """Return one group per layer of `group_matcher`.

    The head has `learning_rate`, and each layer before it `layer_decay` times the rate of the next.
    """
    layers = group_parameters(model, model.group_matcher(), return_values=True)
    top = max(layers)
    return [
        ParameterGroup(
            f"layer {layer}" if layer < top else "head",
            tuple(layers[layer]),
            learning_rate * layer_decay ** (top - layer),
        )
        for layer in sorted(layers)
    ]


def make_trainer(arguments: FinetuneArguments, args: StageArguments) -> FinetuneTrainer:
    """Open the data and the encoder, and give the encoder a new head.

    Raises:
        UserError: data, encoder or settings are wrong.
    """
    labels, held_out, test = read_labels(arguments)
    args.require_held_out(arguments.eval_data_path)
    if held_out is not None:
        args.require_metric(metric_names(held_out), undefined_metrics(held_out))
    mixup = make_mixup(arguments, labels, args)
    model = create_from_directory(arguments.encoder, drop_rate=arguments.drop, drop_path_rate=arguments.drop_path)
    model.reset_classifier(len(labels.classes))
    task = FinetuneTask(model, several=labels.multi_label, smoothing=arguments.smoothing, mixup=mixup)
    groups = layer_groups(model, args.learning_rate, arguments.layer_decay)
    log_trainable(task, groups, args)
    preprocessing = model.config.preprocessing
    transform = augmentation(
        preprocessing,
        arguments.min_crop_area,
        rand_augment_ops=arguments.rand_augment_ops,
        rand_augment_magnitude=arguments.rand_augment_magnitude,
        random_erasing=arguments.reprob,
    )
    bad = arguments.on_bad_image

    def measured(part: Labels | None) -> HeldOutImages | None:
        if part is None:
            return None
        return HeldOutImages(LabelledImages(part, Transform(preprocessing), on_bad_image=bad))

    return FinetuneTrainer(
        groups,
        task=task,
        args=args,
        images=LabelledImages(labels, transform, seed=args.order_seed, on_bad_image=bad),
        held_out=measured(held_out),
        test=measured(test),
        data_collator=default_data_collator,
        compute_metrics=over_readable(auroc_metric(labels.classes) if labels.multi_label else top_1, task.loss),
    )


def finetune(arguments: FinetuneArguments, args: StageArguments) -> None:
    """Run the stage."""
    prepare(args)
    refuse_zero3()
    trainer = make_trainer(arguments, args)
    run(trainer)
    metrics = {"metrics.json": trainer.measure(trainer.held_out), "test_metrics.json": trainer.measure(trainer.test)}
    if args.process_index != 0:
        return
    labels = trainer.labels
    with finished_model(args, create_from_directory) as directory:
        trainer.task.model.save_pretrained(directory)
        write_json(directory / "classes.json", {"classes": labels.classes, "several_per_image": labels.multi_label})
        for name, measured in metrics.items():
            if measured is not None:
                write_json(directory / name, measured)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status."""
    return run_command("train.finetune", __doc__, (FinetuneArguments, StageArguments), finetune, argv)


if __name__ == "__main__":
    sys.exit(main())
