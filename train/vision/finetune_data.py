"""The labelled images of a fine-tuning, and how they are mixed."""

from collections.abc import Sequence
from typing import NamedTuple

from timm.data import Mixup

from sparse_vlm.data.images.labels import Labels, read_class_folders, read_label_table
from sparse_vlm.errors import UserError, some_of
from train.stages.arguments import StageArguments
from train.vision.finetune_arguments import FinetuneArguments


class LabelledParts(NamedTuple):
    """The images to train on, to evaluate on during training, and to measure once at the end."""

    training: Labels
    held_out: Labels | None
    test: Labels | None


def read_labels(arguments: FinetuneArguments) -> LabelledParts:
    """Read the labelled images.

    Raises:
        UserError: something is missing or malformed, or the parts have different classes.
    """
    training = _read(arguments.data_path, arguments.label_file)

    def other(option: str, name: str, folder: str | None, table: str | None) -> Labels | None:
        if folder is None:
            if table is not None:
                raise UserError(f"--{option}_label_file needs the folder of its images: give --{option}_data_path too.")
            return None
        if (arguments.label_file is None) != (table is None):
            raise UserError(f"--label_file and --{option}_label_file go together: give both or neither.")
        labels = _read(folder, table)
        if labels.classes != training.classes:
            raise _different_classes(name, labels.classes, training.classes)
        return labels

    held_out = other("eval", "held-out", arguments.eval_data_path, arguments.eval_label_file)
    return LabelledParts(training, held_out, other("test", "test", arguments.test_data_path, arguments.test_label_file))


def _read(folder: str, table: str | None) -> Labels:
    return read_class_folders(folder) if table is None else read_label_table(table, folder)


def _different_classes(name: str, other: Sequence[str], training: Sequence[str]) -> UserError:
    if set(other) == set(training):
        return UserError(f"The {name} images have the classes of the training images in another order.")
    only, counts = (other, training), ""
    if len(other) + len(training) > 20:
        only = [n for n in other if n not in training], [n for n in training if n not in other]
        counts = f", which the other set lacks ({len(other)} and {len(training)} classes in all)"
    return UserError(
        f"The {name} images have the classes {some_of(only[0])}, the training images {some_of(only[1])}{counts}."
    )


def make_mixup(arguments: FinetuneArguments, labels: Labels, args: StageArguments) -> Mixup | None:
    """Return timm's mixup and cutmix; None if both are off.

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
