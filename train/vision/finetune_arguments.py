"""The arguments of `train.finetune` besides those of every stage."""

from dataclasses import dataclass, field

from train.stages.command_line import check_ranges

RANGES = {
    "layer_decay": "(0, 1]",
    "drop_path": "[0, 1)",
    "drop": "[0, 1)",
    "smoothing": "[0, 1)",
    "min_crop_area": "(0, 1]",
    "rand_augment_ops": "[0, inf)",
    "rand_augment_magnitude": "[0, 30]",
    "reprob": "[0, 1]",
    "mixup": "[0, inf)",
    "cutmix": "[0, inf)",
}


@dataclass
class FinetuneArguments:
    """Encoder, data and regularisation. The names are timm's where timm has one."""

    encoder: str = field(metadata={"help": "encoder directory (`SparseFormer.save_pretrained`)"})
    data_path: str = field(
        metadata={"help": "training images: a folder per class, or with --label_file the image folder"}
    )
    label_file: str | None = field(default=None, metadata={"help": "CSV: image, then 0 or 1 per class (multi-label)"})
    eval_data_path: str | None = field(default=None, metadata={"help": "held-out images, as --data_path"})
    eval_label_file: str | None = field(default=None, metadata={"help": "labels of --eval_data_path, as --label_file"})
    test_data_path: str | None = field(
        default=None, metadata={"help": "images to measure once, with the result; as --data_path"}
    )
    test_label_file: str | None = field(default=None, metadata={"help": "labels of --test_data_path, as --label_file"})
    on_bad_image: str = field(default="error", metadata={"help": "unreadable images: error | skip (and count)"})
    layer_decay: float = field(default=0.75, metadata={"help": "a layer's learning rate relative to the next one's"})
    drop_path: float = field(default=0.1, metadata={"help": "stochastic depth of the last block"})
    drop: float = field(default=0.0, metadata={"help": "dropout before the head"})
    smoothing: float = field(default=0.1, metadata={"help": "label smoothing"})
    min_crop_area: float = field(default=0.35, metadata={"help": "smallest share of an image that a crop keeps"})
    rand_augment_ops: int = field(default=2, metadata={"help": "RandAugment operations per image; 0: off"})
    rand_augment_magnitude: int = field(default=9, metadata={"help": "strength of RandAugment, 0 to 30"})
    reprob: float = field(default=0.0, metadata={"help": "probability of random erasing"})
    mixup: float = field(default=0.0, metadata={"help": "alpha of mixup; 0: off"})
    cutmix: float = field(default=0.0, metadata={"help": "alpha of cutmix; 0: off"})

    def __post_init__(self) -> None:
        check_ranges(self, RANGES)
