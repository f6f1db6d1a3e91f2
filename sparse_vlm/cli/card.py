"""Write the model card of a model directory or an encoder directory, with the numbers that `eval.score` measured.

Examples:
    sparse-vlm card runs/quickstart/model --scores runs/quickstart/scores.json
    sparse-vlm card runs/quickstart/encoder
    sparse-vlm card DIR --scores pope.json gqa.json
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparse_vlm.command_line import CommandParser
from sparse_vlm.errors import UserError, some_of
from sparse_vlm.files import write_text


def add_arguments(parser: CommandParser) -> None:
    """Add the arguments of `run`."""
    parser.add_argument("directory", help="a model directory or an encoder directory")
    parser.add_argument(
        "--scores",
        nargs="+",
        default=[],
        metavar="FILE",
        help="reports of `python -m eval.score` about answers of this model",
    )


def run(arguments: argparse.Namespace) -> None:
    """Write README.md into the directory. One that was edited is an error."""
    from sparse_vlm.hub.cards import CARD, has_own_card, read_reports, signed

    card = _card(arguments.directory, read_reports(arguments.scores))
    file = Path(arguments.directory) / CARD
    if has_own_card(arguments.directory):
        raise UserError(f"{file} was edited, or was not written here. Move it away to get a new one.")
    write_text(file, signed(card))
    print(f"{file} is written, with the numbers of: {some_of(arguments.scores)}")


def _card(directory: str, reports: Sequence[Mapping[str, Any]]) -> str:
    from sparse_vlm.encoder.checkpoints import CLIP_ENCODER, IMAGE_ENCODER, load_config
    from sparse_vlm.hub.cards import encoder_card, model_card
    from sparse_vlm.model_directory import MODEL_TYPE, described_by_config, read_config

    config = read_config(directory)
    if config.get("model_type") != MODEL_TYPE:
        of_clips = config.get("model_type") == CLIP_ENCODER
        kind = CLIP_ENCODER if of_clips else IMAGE_ENCODER
        return encoder_card(load_config(Path(directory), kind).to_dict(), reports, of_clips=of_clips)
    with described_by_config(directory):
        encoder = config["vision_config"].get("encoder") or {}
        return model_card(encoder, config.get("provenance") or {}, config["image_seq_length"], reports=reports)
