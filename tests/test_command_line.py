"""Command lines: the spelling of options, errors in a line, examples in the help."""

import argparse
import subprocess
import sys

import pytest

from sparse_vlm.command_line import CommandParser, unknown_option
from sparse_vlm.errors import UserError

DOCSTRING = """Counts images.

    python -m eval.count --images FOLDER \\
        --batch_size 8

Source: ours.
"""


@pytest.fixture
def parser() -> CommandParser:
    parser = CommandParser.of_module("eval.count", DOCSTRING)
    parser.add_argument("--images", required=True)
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("-o", "--output")
    parser.add_argument("--order", choices=["name", "size"])
    parser.add_argument("--sizes", type=int, nargs="+")
    return parser


@pytest.mark.parametrize("words", [["--batch-size", "8"], ["--batch_size", "8"], ["--batch-size=8"]])
def test_hyphens_and_underscores_mean_the_same(parser: CommandParser, words: list[str]) -> None:
    assert parser.parse_args(["--images", "a-b", *words]).batch_size == 8


@pytest.mark.parametrize(
    ("words", "error"),
    [
        # also before a missing option is complained about
        (["--image", "x"], "Unknown option --image. Did you mean --images? See python -m eval.count --help."),
        (["--images", "x", "--batchsize=8"], "Unknown option --batchsize. Did you mean --batch_size? See"),
        (["--images", "x", "--zzz"], "Unknown option --zzz. See python -m eval.count --help."),
        (["--images", "x", "--batch", "8"], "Unknown option --batch. Did you mean --batch_size?"),
        (["--images", "x", "--batch-size", "many"], "Argument --batch_size: invalid int value: 'many'. See"),
        (["--batch-size", "2"], "The following arguments are required: --images. See"),
        (["--images"], "--images needs a value. See python -m eval.count --help."),
        (["--images", "x", "--output"], "--output needs a value. See"),
        (["--images", "x", "--sizes"], "--sizes needs a value. See"),
        (["--images", "x", "--order", "nmae"], "Unknown --order nmae. Did you mean name? See python -m"),
        (["--images", "x", "--order", "zzz"], "Unknown --order zzz. Choices: name, size. See python -m"),
        (["--images", "x", "--ouput", "y"], "Unknown option --ouput. Did you mean --output? See"),
        (["--images", "x", "left over"], "Unrecognized arguments: left over. See"),
    ],
)
def test_an_error_is_one_line(
    parser: CommandParser, words: list[str], error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        parser.parse_args(words)
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: {error}")
    assert printed.count("\n") == 1


def test_values_are_left_alone(parser: CommandParser) -> None:
    arguments = parser.parse_args(["--images=a-b=c-d", "-o", "-", "--batch-size", "-3"])
    assert (arguments.images, arguments.output, arguments.batch_size) == ("a-b=c-d", "-", -3)
    assert parser.parse_args(["--images", "x", "-ofile"]).output == "file"


def test_a_subcommand_knows_its_own_options(capsys: pytest.CaptureFixture[str]) -> None:
    parser = CommandParser("tool", "A tool.")
    commands = parser.add_subparsers(required=True)
    draw = commands.add_parser("draw", help="draws", examples="  tool draw --max_tokens 3")
    draw.add_argument("--max_tokens", type=int)
    assert parser.parse_args(["draw", "--max-tokens", "3"]).max_tokens == 3
    with pytest.raises(SystemExit, match="2"):
        parser.parse_args(["draw", "--max-token", "3"])
    assert (
        capsys.readouterr().err
        == "error: Unknown option --max-token. Did you mean --max_tokens? See tool draw --help.\n"
    )


def test_a_misspelt_subcommand_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    parser = CommandParser("tool", "A tool.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    commands.add_parser("draw")
    inner = commands.add_parser("plug_in").add_subparsers(required=True)
    inner.add_parser("enable")
    for words, error in (
        (["darw"], "Unknown command darw. Did you mean draw? See tool --help."),
        (["zzz"], "Unknown command zzz. Choices: draw, plug_in. See tool --help."),
        (["plug_in", "enabel"], "Unknown command enabel. Did you mean enable? See tool plug_in --help."),
    ):
        with pytest.raises(SystemExit, match="2"):
            parser.parse_args(words)
        assert capsys.readouterr().err == f"error: {error}\n"


def test_only_clearly_near_options_are_suggested_beside_the_nearest() -> None:
    def error(name: str, *known: str) -> str:
        return str(unknown_option(name, known, "tool"))

    trainings = ["--output_dir", "--output_dtype", "--do_train", "--optim", "--image_folder"]
    assert error("--outputdir", *trainings) == "Unknown option --outputdir. Did you mean --output_dir? See tool --help."
    assert " Did you mean --batch_size or --batch_sizes? " in error("--batchsize", "--batch_sizes", "--batch_size")
    assert " Did you mean --max_tokens? " in error("--max-token", "--tokens", "--max_tokens")


def test_the_help_is_the_docstring(parser: CommandParser) -> None:
    text = parser.format_help()
    assert "Counts images.\n" in text
    assert "examples:\n  python -m eval.count --images FOLDER \\\n      --batch_size 8\n" in text


def test_run_returns_the_exit_status(parser: CommandParser, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(arguments: argparse.Namespace) -> None:
        raise UserError(f"There is no {arguments.images}.")

    assert parser.run(lambda arguments: None, ["--images", "x"]) == 0
    assert parser.run(fail, ["--images", "x"]) == 2
    assert capsys.readouterr().err == "error: There is no x.\n"


def test_information_is_the_message_and_warnings_say_so() -> None:
    program = """
import argparse, logging
from sparse_vlm.command_line import CommandParser

def command(arguments: argparse.Namespace) -> None:
    logging.basicConfig(format="another library's %(message)s")
    for name in ("__main__", "train.stages.stage", "sparse_vlm.vlm", "another"):
        logging.getLogger(name).info("information of %s", name)
    logging.getLogger("train.study").warning("The RoIs have collapsed.")
    logging.getLogger("another").error("No.")

CommandParser("tool").run(command, [])
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stderr.splitlines() == [
        "information of __main__",
        "information of train.stages.stage",
        "information of sparse_vlm.vlm",
        "warning: The RoIs have collapsed.",
        "error: No.",
    ]
