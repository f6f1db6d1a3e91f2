"""Align the vision tower with the language model: train the projector alone, on captions.

    python -m train.align --model_name_or_path VLM_DIR --data_path captions.json --image_folder IMAGES \\
        --output_dir OUT --learning_rate 1e-3 --per_device_train_batch_size 32 --num_train_epochs 1
    deepspeed --num_gpus 8 --module train.align --deepspeed train/configs/deepspeed/zero2.json --bf16 True ...

A YAML or JSON file of options may come first; those of the command line override it.
Input: a directory of `sparse-vlm build`. Output: OUT is a directory of the same kind, plus log.jsonl.
Docs: docs/training.md.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sparse_vlm.errors import UserError, unknown_choice
from sparse_vlm.vlm.modeling import SparseVLMForConditionalGeneration
from train.language import vlm
from train.language.data import make_data
from train.language.data_arguments import DataArguments
from train.language.word_start import start_from_words
from train.stages.checkpoints import last_checkpoint
from train.stages.command_line import check_ranges, run_command
from train.stages.stage import ParameterGroup, StageArguments


@dataclass
class AlignArguments(StageArguments):
    """The arguments of this stage alone. `learning_rate` is the projector's."""

    version: str | None = field(
        default=None,
        metadata={
            "help": "plain: LLaVA's caption format: image, caption, newline (default: the model's chat template)"
        },
    )
    word_start: int = field(
        default=0,
        metadata={
            "help": "number of captions from which to solve the projector before training, so that an image's tokens "
            "start near its caption's word embeddings; 0: off"
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, {"word_start": "[0, inf)"})


def parameter_groups(model: SparseVLMForConditionalGeneration, args: AlignArguments) -> list[ParameterGroup]:
    """Return the parameter groups of this stage: only the projector trains."""
    return vlm.vlm_groups(model, tower=None, projector=args.learning_rate, language=None)


def align(model_args: vlm.ModelArguments, data_args: DataArguments, args: AlignArguments) -> None:
    """Run the stage."""
    if args.version not in (None, "plain"):
        raise unknown_choice("--version", args.version, ["plain"])
    if args.version == "plain" and data_args.independent_turns:
        raise UserError("--version plain has no turns: leave out --independent_turns.")
    model, processor = vlm.load(model_args, args)
    data = make_data(data_args, args, model, processor, language=False, plain=args.version == "plain")
    if args.word_start and last_checkpoint(Path(args.output_dir)) is None:  # a resumed run has its projector
        start_from_words(model, data, args.word_start, args)
    vlm.train(model, parameter_groups(model, args), model_args, args, data, processor)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status."""
    return run_command("train.align", __doc__, (vlm.ModelArguments, DataArguments, AlignArguments), align, argv)


if __name__ == "__main__":
    sys.exit(main())
