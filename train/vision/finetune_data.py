"""The labelled images of a fine-tuning, and how they are mixed."""

from collections.abc import Sequence

from timm.data import Mixup

from sparse_vlm.data.images.labels import Labels, read_class_folders, read_label_table
from sparse_vlm.errors import UserError, some_of
from train.stages.arguments import StageArguments
from train.vision.finetune_arguments import FinetuneArguments


def read_labels(arguments: FinetuneArguments) -> tuple[Labels, Labels | None]:
    """Read the labelled images to train on and the held-out ones.

    Raises:
        UserError: something is missing or malformed, or the two have different classes.
    """

    def read(folder: str, table: str | None) -> Labels:
        return read_class_folders(folder) if table is None else read_label_table(table, folder)

    labels = read(arguments.data_path, arguments.label_file)
    if arguments.eval_data_path is None:
        return labels, None
    if (arguments.label_file is None) != (arguments.eval_label_file is None):
        raise UserError("--label_file and --eval_label_file go together: give both or neither.")
    held_out = read(arguments.eval_data_path, arguments.eval_label_file)
    if held_out.classes != labels.classes:
        raise _different_classes(held_out.classes, labels.classes)
    return labels, held_out


def _different_classes(held_out: Sequence[str], training: Sequence[str]) -> UserError:
    if set(held_out) == set(training):
        return UserError("The held-out images have the classes of the training images in another order.")
    only, counts = (held_out, training), ""
    if len(held_out) + len(training) > 20:
        only = [n for n in held_out if n not in training], [n for n in training if n not in held_out]
        counts = f", which the other set lacks ({len(held_out)} and {len(training)} classes in all)"
    return UserError(
        f"The held-out images have the classes {some_of(only[0])}, the training images {some_of(only[1])}{counts}."
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
