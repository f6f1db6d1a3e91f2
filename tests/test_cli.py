"""`sparse-vlm`: help texts, plug-ins, convert, and info of encoders.

Tests of rois and info of models are in test_model_directory.py, those of build, chat and serve in tests/vlm.
"""

import argparse
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from sparse_vlm import cli
from sparse_vlm.cli import COMMANDS, build_parser, main
from sparse_vlm.command_line import Commands
from sparse_vlm.encoder import SparseFormer, create_encoder
from tests.encoder.parity.official import weights_file


@pytest.fixture(scope="module")
def released_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A full-size sparseformer-v1-t in the authors' older layout, made by renaming our keys."""
    torch.manual_seed(0)
    ours = create_encoder("sparseformer-v1-t").state_dict()
    names = {
        "stem.conv.": "feat_extractor.conv1.",
        "focus.initial_rois.weight": "token_roi.weight",
        "focus.initial_embedding": "token_embedding.weight",
        "focus.repeated_unit.": "layers.0.",
        "focus.transition.": "layers.1.",
        "focus.last_unit.": "layers.2.",
        "cortex.trunk.fc_norm.": "head.norm.",
        "cortex.trunk.head.": "head.classifier.",
        **{f"cortex.trunk.blocks.{index}.": f"layers.{index + 3}." for index in range(7)},
        "sampling.mixing.norm.": "adaptive_mixing.parameter_generator.0.",
        "sampling.mixing.squeeze.": "adaptive_mixing.parameter_generator.1.",
        "sampling.mixing.generate.": "adaptive_mixing.parameter_generator.2.",
        "sampling.mixing.out_proj.": "adaptive_mixing.tuo_proj.",
        "sampling.mixing.": "adaptive_mixing.",
        "sampling.points.norm.": "roi_offset_module.0.",
        "sampling.points.linear.": "roi_offset_module.1.",
        "sampling.points.base": "roi_offset_bias",
        "adjustment.norm.": "roi_adjust_module.0.",
        "adjustment.linear.": "roi_adjust_module.1.",
        "block.": "",
        "attn.qkv.": "attn.in_proj_",
        "attn.proj.": "attn.out_proj.",
        "norm1.": "ln_attn.",
        "norm2.": "ffn.0.",
        "mlp.fc1.": "ffn.1.",
        "mlp.fc2.": "ffn.3.",
    }
    theirs = {}
    for key, value in ours.items():
        for new, old in names.items():
            key = key.replace(new, old)
        theirs[key] = value
    file = tmp_path_factory.mktemp("released") / "v1_tiny.pth"
    torch.save({"model": theirs}, file)
    return file


def subcommands() -> dict[str, argparse.ArgumentParser]:
    (action,) = (each for each in build_parser()._actions if isinstance(each, argparse._SubParsersAction))
    return action.choices


def test_help_has_examples_that_parse() -> None:
    parser = build_parser()
    for name, command in subcommands().items():
        if name not in COMMANDS:  # of a plug-in
            continue
        _, _, examples = (command.epilog or "").partition("examples:\n")
        lines = [line.strip() for line in examples.splitlines()]
        assert lines
        for line in lines:
            program, *words = shlex.split(line)
            assert program == "sparse-vlm"
            assert words[0] == name
            assert parser.parse_args(words).run is command.get_default("run")


def test_plug_ins_add_their_commands() -> None:
    root = Path(__file__).parents[1]
    groups = tomllib.loads((root / "pyproject.toml").read_text())["project"]["entry-points"]
    assert set(groups["sparse_vlm.commands"]) <= set(
        subcommands()
    )  # fails after a change of pyproject.toml: run pip install --editable . again


class PlugIn(NamedTuple):
    """An entry point of an installed package, as far as the command needs it."""

    name: str
    load: Callable[[], Any]
    dist: None = None


def test_a_plug_in_that_cannot_be_loaded_breaks_only_its_own_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """E.g. an entry point whose module is missing, or belongs to another package of the same name."""
    missing = EntryPoint("broken", "sparse_vlm_missing.commands:add_commands", "sparse_vlm.commands")

    def taken(commands: Commands) -> None:
        commands.add_parser("info", help="another package's")

    monkeypatch.setattr(cli, "entry_points", lambda group: [missing, PlugIn("info", lambda: taken)])
    assert main(["info"]) == 0
    printed = capsys.readouterr()
    assert "sparseformer-clip-l" in printed.out
    assert printed.err.startswith("warning: The command info cannot be loaded: ")
    for words in (["broken"], ["broken", "--model", "x"], ["broken", "--help"]):
        with pytest.raises(SystemExit, match="2"):
            main(words)
        error = capsys.readouterr().err.splitlines()[-1]
        assert error == "error: The command broken cannot be loaded: No module named 'sparse_vlm_missing'."


@pytest.mark.parametrize("option", ["--max-tokens", "--max_tokens"])
def test_options_take_hyphens_and_underscores(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["rois", "a.png", "--model", "gone", "-o", "b.png"]
    assert main([*words, option, "0"]) == 2
    assert capsys.readouterr().err == "error: --max_tokens must be 1 or more, got 0.\n"
    with pytest.raises(SystemExit, match="2"):
        main([*words, option[:-1], "3"])
    assert capsys.readouterr().err == (
        f"error: Unknown option {option[:-1]}. Did you mean --max_tokens or --tokens? See sparse-vlm rois --help.\n"
    )


@pytest.mark.slow
def test_convert_writes_an_encoder_directory(
    released_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "encoder"
    assert main(["convert", str(released_file), str(out), "--variant", "sparseformer-v1-t"]) == 0
    assert capsys.readouterr().out == f"sparseformer-v1-t: 31.5M parameters written to {out}\n"
    torch.manual_seed(0)
    expected = create_encoder("sparseformer-v1-t").state_dict()
    opened = SparseFormer.from_pretrained(out).state_dict()
    assert all(torch.equal(value, opened[key]) for key, value in expected.items())
    assert main(["info", str(out)]) == 0
    assert "49 tokens × 512, 31.5M parameters" in capsys.readouterr().out


def test_info_lists_the_variants(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    assert "sparseformer-clip-l" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["info", "sparseformer-clip-x"], "Unknown encoder variant 'sparseformer-clip-x'. Did you mean"),
        (["convert", "gone.pth", "out", "--variant", "sparseformer-v1-t"], "There is no checkpoint file gone.pth."),
        (["convert", str(weights_file("v1_tiny")), "out", "--variant", "sparseformer-v1-t"], "Is it another variant?"),
        (["convert", str(weights_file("v1_tiny")), "out", "--variant", "v1"], "Unknown encoder variant 'v1'."),
        (["convert", __file__, "out", "--variant", "sparseformer-v1-t"], "cannot be read as a checkpoint"),
    ],
)
def test_bad_input_prints_a_one_line_error_and_writes_nothing(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert sentence in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_command_prints_no_traceback() -> None:
    command = [sys.executable, "-m", "sparse_vlm", "info", "nothing"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.startswith("error: Unknown encoder variant 'nothing'.")
    assert "Traceback" not in result.stderr


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    expected = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]["version"]
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"sparse-vlm {expected}\n"


def test_python_m_sparse_vlm() -> None:
    ran = subprocess.run([sys.executable, "-m", "sparse_vlm", "--help"], capture_output=True, text=True, check=True)
    assert ran.stdout.startswith("usage: sparse-vlm")
