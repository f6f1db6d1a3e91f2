"""Alignment: only the projector learns to speak the language model's embeddings, on captions.

    python -m train.align --model_name_or_path VLM_DIR --data_path captions.json --image_folder IMAGES \\
        --output_dir OUT --learning_rate 1e-3 --per_device_train_batch_size 32 --num_train_epochs 1
    deepspeed --num_gpus 8 train/align.py --deepspeed train/zero2.json --bf16 True ...

Input: a directory of `sparse-vlm build`. Output: OUT is a directory of the same kind, plus log.jsonl.
Docs: docs/training.md.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # run as a file, as deepspeed does
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from transformers import HfArgumentParser

from sparse_vlm.errors import exit_with_sentence
from train import vlm
from train.stage import StageArguments


def align(model_args: vlm.ModelArguments, data_args: vlm.DataArguments, args: StageArguments) -> None:
    """Runs the stage; `args.learning_rate` is the projector's."""
    model, processor = vlm.load(model_args, args)
    dataset, collator = vlm.make_data(data_args, args, model, processor, language=False)
    parts = vlm.vlm_parts(model, tower=None, projector=args.learning_rate, language=None)
    vlm.finish(vlm.train(model, parts, args, dataset, collator, processor), args)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = HfArgumentParser([vlm.ModelArguments, vlm.DataArguments, StageArguments])  # type: ignore[list-item]
    return exit_with_sentence(lambda: align(*parser.parse_args_into_dataclasses(argv)))


if __name__ == "__main__":
    sys.exit(main())
