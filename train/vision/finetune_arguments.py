"""The arguments of `train.finetune` that are not every stage's."""

from dataclasses import dataclass, field

from train.stages.command_line import check_ranges


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

    def __post_init__(self) -> None:
        check_ranges(
            self,
            {
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
            },
        )
