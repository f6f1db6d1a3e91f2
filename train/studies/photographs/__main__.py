"""Train a language model on photographs through a SparseFormer, and through the whole dense teacher, and compare them.

    python -m train.studies.photographs --output_dir runs/photographs --photographs DIR --encoder runs/dinov2-student \\
        --teacher timm:vit_small_patch14_dinov2@FILE --teacher_layer 10 --tokens 16,64

DIR holds imagenette's photographs in tar files. Questions about them are made from their labels. Both sides train with
the same data and settings, and the learning rate of each is chosen on validation photographs. Only then are the test
photographs read, for the report. Every step is one of the project's own commands; its command and output are in
logs/STEP.log. Run it again to resume. Docs: docs/photographs.md.
Result: report.md, report.json, accuracy.png, and the model directories of both sides.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from rich.console import Console

from sparse_vlm.command_line import CommandParser
from sparse_vlm.encoder import SparseFormer
from sparse_vlm.encoder.token_counts import TokenCounts
from sparse_vlm.errors import UserError
from sparse_vlm.files import check_output, write_json
from train.pipeline import packaged_llm, require_same_arguments, run_steps
from train.studies.photographs.choice import choose
from train.studies.photographs.paths import Paths
from train.studies.photographs.report import write_report
from train.studies.photographs.settings import Settings
from train.studies.photographs.steps import report_steps, search_steps


def add_arguments(parser: CommandParser) -> None:
    """Add the options; those of `Settings` have its names."""
    parser.add_argument("--output_dir", type=Path, required=True, help="directory for all results")
    parser.add_argument("--encoder", required=True, help="directory of the bootstrapped SparseFormer")
    parser.add_argument("--teacher", required=True, help="the dense teacher, as for train.bootstrap")
    parser.add_argument("--teacher_layer", type=int, help="its last block, as for train.bootstrap (default: the last)")
    parser.add_argument("--image_size", type=int, help="input side of both in pixels (default: the encoder's)")
    parser.add_argument("--tokens", help="numbers of visual tokens, e.g. 16,64 (default: the encoder's own)")
    parser.add_argument("--llm", help="language model, as for sparse-vlm build (default: the packaged SmolLM2-135M)")
    photographs = parser.add_argument_group("photographs")
    photographs.add_argument("--photographs", required=True, help="folder of the tar files of WORDNET_ID/NAME.jpg")
    for split, shards, images in (
        ("training", "train-{00..05}.tar", 1000),
        ("validation", "val-00.tar", 200),
        ("test", "val-01.tar", 500),
    ):
        photographs.add_argument(
            f"--{split}_shards", default=shards, help=f"{split} shards in webdataset's notation (default: {shards})"
        )
        photographs.add_argument(
            f"--{split}_images", type=int, default=images, help=f"{split} photographs to draw (default: {images})"
        )
    training = parser.add_argument_group("training, the same for both sides")
    training.add_argument(
        "--feature_layer",
        type=int,
        default=-2,
        help="hidden state of both towers that becomes the visual tokens (default: -2, the input of the last block)",
    )
    training.add_argument(
        "--learning_rates",
        default="3e-5,1e-4,3e-4",
        help="learning rates of the instruction tuning to choose among (default: 3e-5,1e-4,3e-4)",
    )
    for name, default, text in (
        ("texts", 160, "conversations without an image, four per step"),
        ("word_start", 1000, "captions from which the projector starts"),
        ("align_steps", 40, "steps of the alignment"),
        ("conversations", 400, "conversations about photographs, eight per step"),
        ("save_steps", 100, "steps between two checkpoints"),
        ("seed", 0, "seed of all draws"),
    ):
        training.add_argument(f"--{name}", type=int, default=default, help=f"{text} (default: {default})")
    training.add_argument("--gpu", action="store_true", help="use the accelerator (default: the CPU)")
    parser.add_argument("--probe", action="store_true", help="also measure a linear probe of both towers")


def read_settings(arguments: argparse.Namespace) -> Settings:
    """Convert the options to settings, with the encoder's own values where an option is missing."""
    encoder = SparseFormer.from_pretrained(arguments.encoder).config
    given = vars(arguments) | {
        "image_size": arguments.image_size or encoder.preprocessing.crop,
        "tokens": TokenCounts.of_option(arguments.tokens) or (encoder.focus.tokens,),
        "llm": arguments.llm or str(packaged_llm()),
        "learning_rates": _rates(arguments.learning_rates),
        "cpu": not arguments.gpu,
    }
    return Settings(**{field.name: given[field.name] for field in fields(Settings)})


def _rates(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(piece) for piece in text.split(","))
    except ValueError:
        raise UserError(f"--learning_rates are numbers with commas between them, got {text!r}.") from None


def study(arguments: argparse.Namespace) -> None:
    """Run all steps and write the report."""
    console, root = Console(), arguments.output_dir
    check_output(root, arguments.encoder, arguments.photographs)
    settings = read_settings(arguments)
    settings.check()
    require_same_arguments(root, settings.to_json())
    paths = Paths(root)
    search = search_steps(settings, paths)
    run_steps(search, root, console)
    choice = choose(settings, paths)
    write_json(paths.choice, choice)
    rates = {side: chosen["learning_rate"] for side, chosen in choice.items()}
    measurements = report_steps(settings, paths, rates, arguments.probe)
    run_steps(measurements, root, console)
    report = write_report(settings, paths, [*search, *measurements])
    console.rule("The study is done", align="left")
    for row in report["models"]:
        console.print(f"{row['tower']}, {row['visual_tokens']} tokens: {row['scores']['accuracy']:.1%}")
    console.print(f"See {root}/report.md.")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status."""
    parser = CommandParser.of_module("train.studies.photographs", __doc__)
    add_arguments(parser)
    return parser.run(study, argv)


if __name__ == "__main__":
    sys.exit(main())
