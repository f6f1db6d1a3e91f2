"""Make clips of easy-VQA's shapes with questions about them, as LLaVA data.

    python -m train.studies.videos.data --output_dir runs/videos/data --train 480

train/, validation/, test/: the clips, as mp4 files; see clips.py. Their shapes are cut from the images of easy-VQA's
training split, from those of it that are held out, and from its test split.
train.json, validation.json, test.json: LLaVA conversations about them. validation_blind.json, test_blind.json: the same
questions without the clips.
"""

import random
import sys
from collections.abc import Sequence
from pathlib import Path

from sparse_vlm.command_line import CommandParser
from sparse_vlm.data.cut_outs import cut_outs_by_part
from sparse_vlm.files import new_directory, write_json
from sparse_vlm.measure.timing import require_positive
from train.studies.videos.clips import draw_clip, record, without_video, write_clip

HELD_OUT_IMAGES = 200


def write_clips(output_dir: Path, *, train: int, validation: int, test: int, seed: int) -> None:
    """Write the folders and files that the module's docstring lists, train.json last.

    Args:
        output_dir: directory for the files.
        train, validation, test: number of clips of each part; every other one shows a movement.
        seed: seed of all draws; the parts do not depend on each other's numbers of clips.

    Raises:
        UserError: easy-VQA is not installed, or a part has no clip.
    """
    require_positive(train=train, validation=validation, test=test)
    counts = {"train": train, "validation": validation, "test": test}
    for name, cut_outs in cut_outs_by_part(HELD_OUT_IMAGES).items():
        order = random.Random(f"{name} {seed}")
        samples = []
        with new_directory(output_dir / name) as folder:
            for number in range(counts[name]):
                clip = draw_clip(cut_outs, number % 2 == 0, order)
                write_clip(folder / f"{number}.mp4", clip.frames)
                samples.append(record(f"{name}-{number}", f"{number}.mp4", clip))
        if name != "train":
            write_json(output_dir / f"{name}_blind.json", [without_video(sample) for sample in samples])
        write_json(output_dir / f"{name}.json", samples)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status."""
    parser = CommandParser.of_module("train.studies.videos.data", __doc__)
    parser.add_argument("--output_dir", type=Path, required=True, help="directory for the files")
    parser.add_argument("--train", type=int, default=480, help="clips to train on (default: 480)")
    parser.add_argument("--validation", type=int, default=64, help="clips to choose settings with (default: 64)")
    parser.add_argument("--test", type=int, default=200, help="clips for the test questions (default: 200)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all draws (default: 0)")
    return parser.run(lambda arguments: write_clips(**vars(arguments)), argv)


if __name__ == "__main__":
    sys.exit(main())
