"""The arguments of `train.bootstrap`."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch

from sparse_vlm.bootstrap.grid_decoder import HEAD_WIDTH
from sparse_vlm.bootstrap.objective import LossWeights
from sparse_vlm.bootstrap.targets import NORMALIZATIONS
from sparse_vlm.encoder.token_counts import DENSITIES, TokenCounts
from sparse_vlm.errors import UserError, unknown_choice
from train.stages.arguments import StageArguments
from train.stages.command_line import check_ranges

TEACHER_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass
class StudentArguments:
    """The teacher, and the shape of the student."""

    teacher: str = field(metadata={"help": "timm:NAME[@FILE], open_clip:NAME/TAG[@FILE], or a directory of either"})
    teacher_layer: int | None = field(
        default=None,
        metadata={"help": "block whose tokens are the target, from 0 or, negative, from the end (default: the last)"},
    )
    tokens: str = field(
        default="64",
        metadata={"help": "latent tokens, without CLS; 4-64 or 9,16,25: an elastic student, a count drawn each step"},
    )
    default_tokens: int | None = field(
        default=None, metadata={"help": "count of an elastic student unless one is requested (default: the largest)"}
    )
    token_density: str = field(
        default="linear", metadata={"help": "linear | uniform: few tokens are drawn more often, or all counts alike"}
    )
    eval_tokens: str | None = field(
        default=None, metadata={"help": "counts to evaluate an elastic student with (default: smallest and largest)"}
    )
    image_size: int | None = field(default=None, metadata={"help": "input side in pixels instead of the teacher's"})
    drop_blocks: int | None = field(default=None, metadata={"help": "first blocks to drop (default: a third)"})
    tune_blocks: int | None = field(
        default=None, metadata={"help": "next blocks, inherited and trained (default: a third)"}
    )
    freeze_blocks: int | None = field(
        default=None, metadata={"help": "last blocks, inherited and frozen (default: the rest)"}
    )
    focus_width: int | None = field(
        default=None, metadata={"help": "width of the focusing transformer (default: half the teacher's)"}
    )
    focus_repeats: int = field(default=4, metadata={"help": "repetitions of the focusing unit"})
    sampling_points: int = field(default=16, metadata={"help": "points that a token samples in its RoI"})
    stem_channels: int = field(default=64, metadata={"help": "channels of the early convolution"})
    initial_rois: str | None = field(
        default=None, metadata={"help": "JSON file with [x1, y1, x2, y2] in [0, 1] per token"}
    )
    continue_from: str | None = field(
        default=None, metadata={"help": "encoder directory to start from, e.g. one trained on smaller images"}
    )
    match_tokens: bool = field(default=False, metadata={"help": "initialise latent tokens to the teacher's statistics"})
    inherit: bool = field(default=True, metadata={"help": "False: inherit nothing, the from-scratch baseline"})

    def __post_init__(self) -> None:
        if self.match_tokens and not self.inherit:
            raise UserError(
                "--match_tokens True matches tokens to inherited blocks, but --inherit False inherits none."
            )
        if self.continue_from is not None and (self.match_tokens or not self.inherit or self.initial_rois):
            raise UserError(
                "--continue_from takes all weights from an encoder: leave out --match_tokens, --inherit and "
                "--initial_rois."
            )
        if self.token_density not in DENSITIES:
            raise unknown_choice("--token_density", self.token_density, DENSITIES)
        counts = self.token_counts
        if len(counts.counts) == 1 and (self.eval_tokens or self.default_tokens):
            raise UserError(
                f"--default_tokens and --eval_tokens are for several counts, but --tokens is {self.tokens}. Write, for "
                "example, --tokens 4-64."
            )

    @property
    def token_counts(self) -> TokenCounts:
        """Counts that the student is trained with."""
        return TokenCounts.parse(str(self.tokens))

    @property
    def evaluated_counts(self) -> tuple[int, ...]:
        """Counts that an evaluation measures besides the default; none if the student has a single count."""
        counts = self.token_counts.counts
        if self.eval_tokens is not None:
            return TokenCounts.parse(self.eval_tokens).counts
        return () if len(counts) == 1 else (counts[0], counts[-1])

    def read_rois(self) -> torch.Tensor | None:
        """Read the file of `initial_rois`: float32[tokens, 4].

        Raises:
            UserError: the file is missing or malformed.
        """
        if self.initial_rois is None:
            return None
        try:
            rois = torch.tensor(json.loads(Path(self.initial_rois).read_text(encoding="utf-8")), dtype=torch.float32)
        except OSError as error:
            raise UserError(f"Cannot read --initial_rois {self.initial_rois}: {error.strerror}.") from None
        except (ValueError, TypeError) as error:
            raise UserError(
                f"--initial_rois {self.initial_rois} is not a JSON list of [x1, y1, x2, y2] ({error})."
            ) from None
        return rois


@dataclass
class ImageArguments:
    """The images: see `sparse_vlm.data.images.sources.open_images`."""

    data_path: str = field(metadata={"help": "training images: a folder, wds:SHARDS, hf:NAME, …; labels are ignored"})
    eval_data_path: str | None = field(
        default=None, metadata={"help": "held-out images to measure the alignment on, as --data_path"}
    )
    eval_samples: int | None = field(
        default=None,
        metadata={"help": "held-out images to use: evenly spaced, or the first of a stream (default: all)"},
    )
    hold_out: bool = field(
        default=False,
        metadata={"help": "leave the held-out images, which are among those of --data_path, out of training"},
    )
    zero_shot_data_path: str | None = field(
        default=None, metadata={"help": "labelled images for zero-shot accuracy: a folder per class"}
    )
    class_names: str | None = field(
        default=None, metadata={"help": "file with one name per class folder (default: ImageNet's)"}
    )
    min_crop_area: float = field(default=0.35, metadata={"help": "smallest share of an image that a crop keeps"})
    on_bad_image: str = field(default="error", metadata={"help": "unreadable images: error | skip (and count)"})
    samples_per_epoch: int | None = field(default=None, metadata={"help": "images per epoch of a stream"})
    image_column: str | None = field(
        default=None, metadata={"help": "column (hf:) or file ending (wds:) of the images"}
    )
    statistics_images: int = field(
        default=256,
        metadata={"help": "training images for the statistics of --match_tokens and --normalize_targets"},
    )
    shuffle_buffer: int = field(default=1000, metadata={"help": "images that each reader of a stream shuffles"})

    def __post_init__(self) -> None:
        at_least_one = dict.fromkeys(("eval_samples", "samples_per_epoch", "statistics_images"), "[1, inf)")
        if self.eval_samples is not None and self.eval_data_path is None:
            raise UserError("--eval_samples needs held-out images: give --eval_data_path too.")
        if self.hold_out and (self.eval_samples is None or self.eval_data_path != self.data_path):
            raise UserError(
                "--hold_out True leaves --eval_samples images of --data_path out of training: give --eval_samples, and "
                "the same path as --eval_data_path."
            )
        if self.zero_shot_data_path is not None and self.eval_data_path is None:
            raise UserError("--zero_shot_data_path needs --eval_data_path: both are measured together.")
        check_ranges(self, {**at_least_one, "min_crop_area": "(0, 1]", "shuffle_buffer": "[0, inf)"})


@dataclass
class ObjectiveArguments:
    """The loss, and how the teacher runs: see `sparse_vlm.bootstrap.objective`."""

    alignment_weight: float = field(default=1.0, metadata={"help": "weight of 1 − cosine of the final representations"})
    token_weight: float = field(
        default=0.0, metadata={"help": "weight of 1 − cosine of tokens and the patches under them"}
    )
    feature_weight: float = field(
        default=0.0, metadata={"help": "weight of the smooth L1 of the final representations"}
    )
    entry_weight: float = field(
        default=0.0, metadata={"help": "weight of 1 − cosine of tokens entering the inherited blocks"}
    )
    grid_weight: float = field(
        default=0.0,
        metadata={"help": "weight of the teacher's patches, rebuilt from the latent tokens by a decoder"},
    )
    grid_decoder_width: int = field(default=256, metadata={"help": "width of that decoder, which is not saved"})
    grid_decoder_depth: int = field(default=2, metadata={"help": "number of its blocks"})
    normalize_targets: str = field(
        default="none",
        metadata={"help": "none | center | standardize: subtract fixed means, divide by fixed deviations, per channel"},
    )
    teacher_image_size: int | None = field(default=None, metadata={"help": "add a second teacher view at this size"})
    view_weight: float | None = field(
        default=None, metadata={"help": "weight of the second view (default: 1 if there is one)"}
    )
    teacher_dtype: str | None = field(
        default=None,
        metadata={"help": "float32 | bfloat16 (default: bfloat16 if the stage computes in bf16)"},
    )

    def __post_init__(self) -> None:
        if self.normalize_targets not in NORMALIZATIONS:
            raise unknown_choice("--normalize_targets", self.normalize_targets, NORMALIZATIONS)
        if self.teacher_dtype is not None and self.teacher_dtype not in TEACHER_DTYPES:
            raise unknown_choice("--teacher_dtype", self.teacher_dtype, TEACHER_DTYPES)
        check_ranges(self, {"grid_decoder_depth": "[1, inf)", "grid_decoder_width": "[8, inf)"})
        if self.grid_decoder_width % HEAD_WIDTH:
            raise UserError(
                f"--grid_decoder_width must be a multiple of {HEAD_WIDTH}, the width of a head, got "
                f"{self.grid_decoder_width}."
            )

    def teacher_in(self, stage: torch.dtype) -> torch.dtype:
        """Return the teacher's dtype in a stage that computes in `stage`."""
        if self.teacher_dtype is not None:
            return TEACHER_DTYPES[self.teacher_dtype]
        return stage if stage in TEACHER_DTYPES.values() else torch.float32

    @property
    def weights(self) -> LossWeights:
        """The weights of the loss terms."""
        return LossWeights(
            alignment=self.alignment_weight,
            token=self.token_weight,
            feature=self.feature_weight,
            view=float(self.teacher_image_size is not None) if self.view_weight is None else self.view_weight,
            entry=self.entry_weight,
            grid=self.grid_weight,
        )


@dataclass
class BootstrapTraining(StageArguments):
    """StageArguments plus those of bootstrapping. --eval_steps alone turns evaluation on."""

    tuned_lr_scale: float = field(
        default=0.1, metadata={"help": "learning rate of the tuned blocks, relative to --learning_rate"}
    )
    layer_decay: float = field(
        default=1.0, metadata={"help": "a tuned block's learning rate relative to the next one's"}
    )
    ema_decay: float | None = field(
        default=None, metadata={"help": "publish a moving average with this decay, e.g. 0.9999"}
    )
    metric_for_best_model: str | None = field(default="cosine", metadata={"help": "metric of --load_best_model_at_end"})
    save_total_limit: int | None = field(default=2, metadata={"help": "checkpoints to keep while running"})

    def __post_init__(self) -> None:
        if self.eval_steps is not None and self.eval_strategy == "no":
            self.eval_strategy = "steps"
        super().__post_init__()
        by_steps = self.eval_strategy == self.save_strategy == "steps"
        if self.load_best_model_at_end and by_steps and self.eval_steps != self.save_steps:
            raise UserError(
                "--load_best_model_at_end needs a checkpoint at each evaluation, but --save_steps is "
                f"{self.save_steps:g} and --eval_steps is {self.eval_steps:g}. Make them equal."
            )
        check_ranges(self, {"ema_decay": "[0, 1)", "layer_decay": "(0, 1]", "tuned_lr_scale": "[0, inf)"})


ARGUMENTS = (StudentArguments, ImageArguments, ObjectiveArguments, BootstrapTraining)
