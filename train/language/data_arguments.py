"""The options of the alignment and the instruction stage for their data."""

from dataclasses import dataclass, field

from sparse_vlm.data.bad_items import CHOICES
from sparse_vlm.data.conversations.dataset import CHECK_CHOICES
from sparse_vlm.encoder.token_counts import DENSITIES, TokenCounts
from sparse_vlm.errors import UserError, check_choice
from train.stages.command_line import check_ranges


@dataclass
class DataArguments:
    """The training data and how samples become rows."""

    data_path: str = field(metadata={"help": "LLaVA JSON or JSONL, wds:SHARDS, hf:NAME, or a YAML mixture of these"})
    image_folder: str = field(default=".", metadata={"help": "folder that the image paths are relative to"})
    eval_data_path: str | None = field(
        default=None, metadata={"help": "held-out data, measured with --eval_strategy steps"}
    )
    eval_image_folder: str | None = field(
        default=None, metadata={"help": "as --image_folder, for --eval_data_path (default: --image_folder)"}
    )
    video_folder: str | None = field(
        default=None, metadata={"help": "folder that the video paths are relative to (default: --image_folder)"}
    )
    eval_video_folder: str | None = field(
        default=None, metadata={"help": "as --video_folder, for --eval_data_path (default: --eval_image_folder)"}
    )
    model_max_length: int = field(
        default=2048, metadata={"help": "maximum number of tokens per sample; see --too_long"}
    )
    too_long: str = field(
        default="error", metadata={"help": "samples over --model_max_length: error | skip | truncate"}
    )
    independent_turns: bool = field(
        default=False, metadata={"help": "turns of a sample share the image but do not attend to each other (VQA)"}
    )
    packing: bool = field(
        default=False, metadata={"help": "short conversations of a batch share a row without attending to each other"}
    )
    on_bad_sample: str = field(default="error", metadata={"help": "bad samples: error | skip (and count)"})
    check_samples: str = field(
        default="before",
        metadata={
            "help": "before | while_reading: check all samples before the first step (with --on_bad_sample skip, all "
            "images are read once), or each when it is read (skip: another sample replaces a bad one)"
        },
    )
    cache_visual_tokens: str | None = field(
        default=None,
        metadata={"help": "directory for visual tokens, which a frozen vision tower computes once per image"},
    )
    visual_tokens: str | None = field(
        default=None,
        metadata={
            "help": "number of visual tokens per image; 9-64 or 9,16,25: drawn at each step (default: the model's)"
        },
    )
    token_density: str = field(
        default="linear", metadata={"help": f"density of the numbers of visual tokens: {' | '.join(DENSITIES)}"}
    )
    region_tokens: int | None = field(
        default=None, metadata={"help": "number of visual tokens per <region> (default: the model's)"}
    )
    fps: float | None = field(default=None, metadata={"help": "frames per second of videos (default: the model's)"})
    max_frames: int | None = field(
        default=None, metadata={"help": "most frames of a video, at equal distances (default: the model's)"}
    )
    frame_tokens: int | None = field(
        default=None, metadata={"help": "number of visual tokens per frame of a video (default: the model's)"}
    )
    timestamps: bool = field(default=False, metadata={"help": 'write the time of each frame before it: "0.5s: "'})

    def __post_init__(self) -> None:
        least_one = dict.fromkeys(("region_tokens", "max_frames", "frame_tokens"), "[1, inf)")
        check_ranges(self, least_one | {"fps": "(0, inf)"})
        check_choice("--on_bad_sample", self.on_bad_sample, CHOICES)
        check_choice("--check_samples", self.check_samples, CHECK_CHOICES)
        check_choice("--token_density", self.token_density, DENSITIES)
        if self.cache_visual_tokens is not None and self.check_samples == "while_reading":
            raise UserError(
                "--cache_visual_tokens reads all images before the first step: leave out --check_samples while_reading."
            )
        _ = self.token_counts  # raises if they are malformed

    @property
    def token_counts(self) -> TokenCounts | None:
        """The numbers of visual tokens to train with; None: the model's own."""
        return None if self.visual_tokens is None else TokenCounts.parse(str(self.visual_tokens))
