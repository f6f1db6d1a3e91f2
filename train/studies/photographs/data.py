"""Unpack the photographs of a split and write questions about them, as LLaVA data and as question files.

    python -m train.studies.photographs.data training --photographs DIR --shards 'train-{00..05}.tar' --images 1000 \\
        --texts 160 --conversations 400 --output_dir runs/photographs/data
    python -m train.studies.photographs.data test --photographs DIR --shards val-01.tar --images 500 \\
        --output_dir runs/photographs/data

training/, validation/, test/: the photographs of a split, as WORDNET_ID/NAME.jpg. No photograph may be in two of them.
captions.json, reading.json, instruct.json: training data: a caption per photograph, conversations in words without an
image, and conversations about photographs.
validation.jsonl, test.jsonl: questions for `eval.generate short_answers`.
blank/: a grey image for each test photograph, to ask what a model answers without seeing.
"""

import argparse
import hashlib
import json
import random
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from sparse_vlm.command_line import CommandParser
from sparse_vlm.errors import UserError
from sparse_vlm.files import new_directory, write_json, write_text
from sparse_vlm.measure.timing import require_positive
from train.studies.photographs.classes import Photograph, draw, read_photographs
from train.studies.photographs.questions import caption_records, image_records, question_lines, text_records

SPLITS = ("training", "validation", "test")
GREY = (128, 128, 128)
BLANK_SIDE = 224


def unpack(photographs: Sequence[Photograph], split: str, output_dir: Path) -> None:
    """Write the photographs of a split into its folder.

    Raises:
        UserError: one of them is also in the folder of another split.
    """
    known = {
        hashlib.sha256(file.read_bytes()).digest(): other
        for other in SPLITS
        if other != split
        for file in (output_dir / other).rglob("*")
        if file.is_file()
    }
    shutil.rmtree(output_dir / split, ignore_errors=True)  # it must hold these photographs alone
    with new_directory(output_dir / split) as folder:
        for photograph in photographs:
            data = photograph.member.read()
            if (other := known.get(hashlib.sha256(data).digest())) is not None:
                raise UserError(
                    f"The {split} photograph {photograph.member} is also a {other} photograph. Remove it from one of "
                    "the shards: no photograph may be in two splits."
                )
            file = folder / photograph.name
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(data)


def _write_blanks(photographs: Sequence[Photograph], folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    with new_directory(folder) as temporary:
        for photograph in photographs:
            file = temporary / photograph.name
            file.parent.mkdir(exist_ok=True)
            Image.new("RGB", (BLANK_SIDE, BLANK_SIDE), GREY).save(file)


def write_split(arguments: argparse.Namespace) -> None:
    """Write the files of a split that the module's docstring lists; the last one is instruct.json or SPLIT.jsonl.

    Raises:
        UserError: see `read_photographs`, `draw` and `unpack`.
    """
    split, output_dir = arguments.split, arguments.output_dir
    order = random.Random(f"{split} {arguments.seed}")
    photographs = draw(read_photographs(arguments.photographs, arguments.shards), arguments.images, order, "--images")
    if split == "training":
        require_positive(texts=arguments.texts, conversations=arguments.conversations)
    unpack(photographs, split, output_dir)
    if split == "training":
        write_json(output_dir / "captions.json", caption_records(order.sample(photographs, len(photographs))))
        write_json(output_dir / "reading.json", text_records(arguments.texts, order))
        write_json(output_dir / "instruct.json", image_records(photographs, arguments.conversations, order))
        return
    if split == "test":
        _write_blanks(photographs, output_dir / "blank")
    lines = question_lines(photographs, order)
    write_text(output_dir / f"{split}.jsonl", "".join(f"{json.dumps(line)}\n" for line in lines))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status."""
    parser = CommandParser.of_module("train.studies.photographs.data", __doc__)
    parser.add_argument("split", choices=SPLITS, help=f"{' | '.join(SPLITS)}")
    parser.add_argument("--photographs", type=Path, required=True, help="folder of the shards")
    parser.add_argument("--shards", required=True, help="shards of the split, in webdataset's notation")
    parser.add_argument("--images", type=int, required=True, help="photographs to draw, evenly over the classes")
    parser.add_argument("--texts", type=int, default=160, help="training conversations without an image (default: 160)")
    parser.add_argument(
        "--conversations", type=int, default=400, help="training conversations about photographs (default: 400)"
    )
    parser.add_argument("--output_dir", type=Path, required=True, help="directory for the files")
    parser.add_argument("--seed", type=int, default=0, help="seed of every draw (default: 0)")
    return parser.run(write_split, argv)


if __name__ == "__main__":
    sys.exit(main())
