"""Bootstrap a SparseFormer from a pre-trained ViT, on unlabelled images.

    python -m train.bootstrap train/configs/recipes/clip_l14.yaml --data_path IMAGES --output_dir OUT \\
        --gradient_accumulation_steps 8
    python -m train.bootstrap --teacher timm:vit_small_patch14_dinov2@model.safetensors --image_size 224 \\
        --data_path IMAGES --output_dir OUT --tokens 49 --learning_rate 1e-3 --max_steps 20000
    deepspeed --num_gpus 8 --module train.bootstrap train/configs/recipes/clip_l14.yaml \\
        --deepspeed train/configs/deepspeed/zero2.json ...

A recipe is a file of options; those of the command line override it. Output: OUT is an encoder directory
(`SparseFormer.from_pretrained`), plus log.jsonl, losses.png, rois.png, inheritance.json (the origin of every weight),
parameter_groups.txt and, with --eval_data_path, alignment.json. Docs: docs/bootstrapping.md.
"""

import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from transformers import default_data_collator

from sparse_vlm.bootstrap import BootstrapTask, InheritanceReport, bootstrap_from, match_tokens, open_teacher
from sparse_vlm.bootstrap.inherit import FIXED, FROZEN, NEW, continue_from
from sparse_vlm.data.images.augmentation import augmentation
from sparse_vlm.draw import roi_figure
from sparse_vlm.encoder import SparseFormer
from sparse_vlm.figures import alignment_figure, save_figure
from sparse_vlm.files import write_json
from train.stages.command_line import run_command
from train.stages.drawn_counts import DrawnCounts
from train.stages.log import LOG_NAME, read_log
from train.stages.precision import compute_dtype
from train.stages.stage import ParameterGroup, finished_model, log_trainable, prepare, refuse_zero3, run
from train.vision.bootstrap_arguments import (
    ARGUMENTS,
    BootstrapTraining,
    ImageArguments,
    ObjectiveArguments,
    StudentArguments,
)
from train.vision.bootstrap_images import figure_images, held_out_images, training_images, typical_images
from train.vision.bootstrap_trainer import MEASURED, ZERO_SHOT, BootstrapTrainer
from train.vision.monitor import open_zero_shot_task

logger = logging.getLogger(__name__)
NEEDS_LABELS = "it needs labelled images: give --zero_shot_data_path"


def parameter_groups(task: BootstrapTask, report: InheritanceReport, args: BootstrapTraining) -> list[ParameterGroup]:
    """Return the groups: new weights, one per inherited block that trains, frozen inherited weights, and the decoders.

    The tuned block next to the frozen ones has the rate learning_rate · tuned_lr_scale, and each block before it
    `layer_decay` times the rate of the next.
    """
    fates = {fate.student: fate.fate for fate in report.fates}
    new: list[nn.Parameter] = []
    frozen: list[nn.Parameter] = []
    tuned: dict[int, list[nn.Parameter]] = {}
    for name, parameter in task.student.named_parameters():
        if fates[name] in (NEW, FROZEN, FIXED):
            (new if fates[name] == NEW else frozen).append(parameter)
        else:
            index = int(name.removeprefix("cortex.trunk.blocks.").partition(".")[0])  # only blocks are tuned
            tuned.setdefault(index, []).append(parameter)
    top, rate = max(tuned, default=0), args.learning_rate * args.tuned_lr_scale
    groups = [ParameterGroup("new", tuple(new), args.learning_rate)]
    for index, parameters in sorted(tuned.items()):
        decayed = rate * args.layer_decay ** (top - index)
        groups.append(ParameterGroup(f"inherited block {index}", tuple(parameters), decayed))
    groups.append(ParameterGroup("inherited, frozen", tuple(frozen), None))
    groups.append(ParameterGroup("grid decoders", tuple(task.decoders.parameters()), args.learning_rate))
    return [group for group in groups if group.parameters]


def make_task(
    arguments: StudentArguments, images: ImageArguments, objective: ObjectiveArguments, dtype: torch.dtype
) -> tuple[BootstrapTask, InheritanceReport]:
    """Open the teacher and bootstrap the student; if options need statistics of training images, take them.

    Args:
        arguments, images, objective: the command line.
        dtype: dtype in which the stage computes.

    Raises:
        UserError: a value does not fit the teacher, or the images cannot be opened.
    """
    weights = objective.weights  # checked before anything is loaded
    layer = arguments.teacher_layer
    teacher = open_teacher(arguments.teacher, image_size=arguments.image_size, layer=layer)
    second = None
    if objective.teacher_image_size is not None:
        second = open_teacher(arguments.teacher, image_size=objective.teacher_image_size, layer=layer)
        second.text = None
    student, report = bootstrap_from(
        teacher,
        arguments.token_counts,
        default_tokens=arguments.default_tokens,
        drop=arguments.drop_blocks,
        tune=arguments.tune_blocks,
        freeze=arguments.freeze_blocks,
        focus_width=arguments.focus_width,
        points=arguments.sampling_points,
        repeats=arguments.focus_repeats,
        stem_channels=arguments.stem_channels,
        initial_rois=arguments.read_rois(),
        inherit=arguments.inherit,
    )
    if arguments.continue_from is not None:
        continue_from(student, arguments.continue_from)
    task = BootstrapTask(
        student,
        teacher,
        weights,
        second,
        objective.teacher_in(dtype),
        normalization=objective.normalize_targets,
        decoder_width=objective.grid_decoder_width,
        decoder_depth=objective.grid_decoder_depth,
    )
    normalize = objective.normalize_targets != "none"
    if arguments.match_tokens or normalize:
        typical = typical_images(images, student.transform)
        if arguments.match_tokens:
            logger.info("%s", match_tokens(student, teacher, typical))
        if normalize:
            task.measure_targets(typical)
    return task, report


def make_trainer(
    task: BootstrapTask,
    report: InheritanceReport,
    arguments: StudentArguments,
    images: ImageArguments,
    args: BootstrapTraining,
) -> BootstrapTrainer:
    """Open the data, and log the inheritance and the parameter groups.

    Raises:
        UserError: the data cannot be opened, or an option needs data that are not given.
    """
    args.require_held_out(images.eval_data_path)
    labelled = images.zero_shot_data_path is not None
    args.require_metric((*MEASURED, *ZERO_SHOT), {} if labelled else dict.fromkeys(ZERO_SHOT, NEEDS_LABELS))
    groups = parameter_groups(task, report, args)
    if args.process_index == 0:
        logger.info("%s", report)
    log_trainable(task, groups, args)
    preprocessing, size = task.teacher.preprocessing, task.image_size
    crops = replace(preprocessing, crop=size, resize=max(size, preprocessing.resize))
    dataset = training_images(images, augmentation(crops, images.min_crop_area), args.order_seed, images.shuffle_buffer)
    zero_shot = None
    if images.zero_shot_data_path is not None:
        zero_shot = open_zero_shot_task(
            task.teacher,
            images.zero_shot_data_path,
            images.class_names,
            on_bad_image=images.on_bad_image,
            device=args.device,
        )
    return BootstrapTrainer(
        groups,
        task=task,
        ema_decay=args.ema_decay,
        zero_shot=zero_shot,
        drawn=DrawnCounts(arguments.token_counts, arguments.token_density, args.order_seed),
        evaluated_counts=arguments.evaluated_counts,
        args=args,
        images=dataset,
        eval_dataset=held_out_images(images, task.student.transform),
        data_collator=default_data_collator,
    )


def bootstrap(
    arguments: StudentArguments, images: ImageArguments, objective: ObjectiveArguments, args: BootstrapTraining
) -> None:
    """Run the stage."""
    args.refuse_full_eval()
    prepare(args)
    refuse_zero3()
    task, report = make_task(arguments, images, objective, compute_dtype(args))
    trainer = make_trainer(task, report, arguments, images, args)
    run(trainer)
    measured = None if images.eval_data_path is None else trainer.measure()
    if args.process_index != 0:
        return
    shown = figure_images(images)
    if measured is None:
        trainer.require_finite_rois(shown)
    logger.info("Published: %s", trainer.published())
    with finished_model(args, SparseFormer.from_pretrained) as directory:
        trainer.student.save_pretrained(directory)
        write_json(directory / "inheritance.json", report.to_dict())
        save_figure(alignment_figure(read_log(Path(args.output_dir) / LOG_NAME)), directory / "losses.png")
        save_figure(roi_figure(trainer.student, shown), directory / "rois.png")
        if measured is not None:
            alignment = {"alignment_cosine": measured.pop("cosine"), **measured, "weights": trainer.published()}
            write_json(directory / "alignment.json", alignment)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status."""
    return run_command("train.bootstrap", __doc__, ARGUMENTS, bootstrap, argv)


if __name__ == "__main__":
    sys.exit(main())
