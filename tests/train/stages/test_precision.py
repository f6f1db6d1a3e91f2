"""A stage's default precision; and bf16 under DeepSpeed becomes autocast, from any form of configuration."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from sparse_vlm.errors import UserError
from tests.forked import run_together
from tests.ports import free_port
from train.stages.command_line import parse_arguments
from train.stages.precision import compute_dtype, with_autocast
from train.stages.stage import StageArguments, prepare
from train.stages.variant import write_variant

CONFIG: dict[str, Any] = {"bf16": {"enabled": "auto"}, "zero_optimization": {"stage": 2}}


def test_dict_text_and_file_are_equivalent(tmp_path: Path) -> None:
    file = tmp_path / "zero2.json"
    file.write_text(json.dumps(CONFIG))
    found = with_autocast(str(file))
    assert found == with_autocast(CONFIG) == with_autocast(json.dumps(CONFIG))
    assert found["torch_autocast"] == {"enabled": True, "dtype": "bfloat16"}
    assert found["bf16"] == {"enabled": False}
    assert found["zero_optimization"] == {"stage": 2}


@pytest.mark.parametrize(("text", "message"), [(None, "is not a readable JSON file"), ("[]", "hold a JSON object")])
def test_a_bad_file_is_a_one_line_error(text: str | None, message: str, tmp_path: Path) -> None:
    file = tmp_path / "zero2.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError, match=message):
        with_autocast(str(file))


@pytest.fixture(params=[True, False])
def native(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether bf16 is native on every device."""
    monkeypatch.setattr("train.stages.precision.has_bfloat16", lambda device: request.param)
    return request.param


@pytest.fixture
def parse(tmp_path: Path) -> Callable[..., StageArguments]:
    """Parse the options of a stage on the CPU."""

    def parsed(*words: str) -> StageArguments:
        (args,) = parse_arguments((StageArguments,), ["--output_dir", str(tmp_path), *words])
        return args

    return parsed


def test_bf16_is_the_default_where_it_is_native(
    native: bool, parse: Callable[..., StageArguments], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    args = parse("--use_cpu", "True")
    assert args.bf16 is native
    assert compute_dtype(args) is (torch.bfloat16 if native else torch.float32)
    prepare(args)
    assert f"Training in {'bfloat16' if native else 'float32'} on cpu." in caplog.text


def test_a_command_chooses_the_precision(native: bool, parse: Callable[..., StageArguments]) -> None:
    for words, dtype in (
        (["--bf16", "False"], torch.float32),
        (["--bf16", "True"], torch.bfloat16),
        (["--bf16"], torch.bfloat16),
        (["--fp16", "True"], torch.float16),
    ):
        assert compute_dtype(parse("--use_cpu", "True", *words)) is dtype


@pytest.mark.skipif(torch.accelerator.is_available(), reason="needs a machine without an accelerator")
def test_a_cpu_may_compute_in_bf16_without_use_cpu(parse: Callable[..., StageArguments]) -> None:
    """transformers would refuse it."""
    args = parse("--bf16", "True")
    assert compute_dtype(args) is torch.bfloat16
    assert args.device.type == "cpu"


@pytest.mark.parametrize(("launched", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_a_launcher_chooses_the_precision(
    launched: str,
    dtype: torch.dtype,
    native: bool,
    parse: Callable[..., StageArguments],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`accelerate launch --mixed_precision`."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    assert compute_dtype(parse("--use_cpu", "True")) is dtype


def test_the_default_under_deepspeed_is_autocast_too(native: bool, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    args = StageArguments(output_dir=str(tmp_path), use_cpu=True, deepspeed=json.dumps(CONFIG))
    unset_hf_deepspeed_config()
    assert compute_dtype(args) is (torch.bfloat16 if native else torch.float32)
    assert not args.bf16, "DeepSpeed's own, which would cast the weights of coordinates"


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_resumed_run_keeps_its_precision(
    dtype: str, native: bool, parse: Callable[..., StageArguments], tmp_path: Path
) -> None:
    """As when it is resumed on another processor, or the measurement comes out otherwise."""
    checkpoint = tmp_path / "checkpoint-2"
    checkpoint.mkdir()
    write_variant(checkpoint, {"dtype": dtype})
    assert parse("--use_cpu", "True").bf16 is native, "a checkpoint without a state is incomplete"
    (checkpoint / "trainer_state.json").write_text('{"global_step": 2}')
    assert parse("--use_cpu", "True").bf16 is (dtype == "bfloat16")
    assert parse("--use_cpu", "True", "--bf16", "True").bf16 is True
    (checkpoint / "variant.json").unlink()
    assert parse("--use_cpu", "True").bf16 is native


@pytest.mark.slow
def test_the_first_process_decides_for_all(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import os, sys, train.stages.precision as precision\n"
        "from train.stages.arguments import StageArguments\n"
        "precision.has_bfloat16 = lambda device: os.environ['RANK'] == '0'\n"
        "print(StageArguments(output_dir=sys.argv[1], use_cpu=True, ddp_backend='gloo').bf16)\n"
    )
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "LOCAL_WORLD_SIZE": "2"}
    ranks = [shared | {"RANK": rank, "LOCAL_RANK": rank} for rank in ("0", "1")]
    run_together([str(program), str(tmp_path / "out")], ranks, tmp_path / "printed.txt")
    for file in ("printed.txt", "printed.1.txt"):
        assert (tmp_path / file).read_text().splitlines()[-1] == "True"
