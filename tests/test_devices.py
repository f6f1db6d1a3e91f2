"""Choice of device and dtype, and memory measurements, with fake accelerators where there is none."""

import argparse
from collections.abc import Iterator
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch

from sparse_vlm import cli, devices
from sparse_vlm.command_line import add_device_arguments
from sparse_vlm.devices import choose_device, choose_dtype, devices_here, free_bytes, peak_bytes, synchronize
from sparse_vlm.dtypes import name_of
from sparse_vlm.errors import UserError

CPU = torch.device("cpu")
COMMANDS = [
    "eval.encoders.clip_benchmark",
    "eval.cost.parts",
    "eval.cost.first_token",
    "eval.generate",
    "eval.encoders.imagenet",
    "eval.cost.llm",
    "eval.encoders.neighbours",
    "eval.encoders.resolution",
    "eval.cost.train_step",
    "eval.encoders.zero_shot",
    "demo.app",
]


@pytest.fixture
def fake_accelerator(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """Make torch see two accelerators of the type that the test is parametrised with."""
    kind: str = request.param
    fakes = {"is_available": lambda: True, "device_count": lambda: 2, "current_accelerator": lambda: torch.device(kind)}
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.accelerator, name, fake)
    return kind


@pytest.fixture
def no_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)


@pytest.mark.parametrize("fake_accelerator", ["cuda", "mps", "xpu"], indirect=True)
def test_an_accelerator_is_preferred(fake_accelerator: str) -> None:
    first, second = (torch.device(fake_accelerator, index) for index in range(2))
    assert devices_here() == [CPU, first, second]
    assert choose_device() == choose_device(fake_accelerator) == choose_device(f"{fake_accelerator}:0") == first
    assert choose_device(f"{fake_accelerator}:1") == second
    assert choose_device("cpu") == choose_device("cpu:0") == CPU
    absent = f"{fake_accelerator}:2"
    with pytest.raises(UserError, match=f"There is no {absent}: torch sees cpu, {first}, {second}. Use --device auto"):
        choose_device(absent)


@pytest.mark.parametrize("fake_accelerator", ["hpu"], indirect=True)
def test_other_types_of_accelerators_are_accepted(fake_accelerator: str) -> None:
    assert choose_device() == choose_device("hpu") == torch.device("hpu", 0)


@pytest.mark.usefixtures("no_accelerator")
def test_without_an_accelerator_the_cpu_is_chosen() -> None:
    assert choose_device() == choose_device("cpu") == CPU
    for absent in ("cuda", "cuda:99", "mps", "cpu:1"):
        with pytest.raises(UserError, match=f"There is no {absent}: torch sees cpu. Use --device auto"):
            choose_device(absent)


@pytest.mark.parametrize("name", ["tpu", "meta", "cpu:x", "cuda:-1", "", "CUDA", "0"])
def test_unknown_devices_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"Unknown --device '{name}'.*Choices: auto, cpu, cuda, mps, xpu"):
        choose_device(name)


@pytest.mark.parametrize("kind", ["cuda", "xpu"])
@pytest.mark.parametrize("supported", [True, False])
def test_bfloat16_is_chosen_where_it_is_native(kind: str, supported: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.device] = []

    class Current:
        def __init__(self, device: torch.device) -> None:
            asked.append(device)

        def __enter__(self) -> None: ...

        def __exit__(self, *_: object) -> None: ...

    module = SimpleNamespace(device=Current, is_bf16_supported=lambda including_emulation: supported)
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    second = torch.device(kind, 1)
    assert choose_dtype("auto", second) is (torch.bfloat16 if supported else torch.float32)
    assert asked == [second], "each device is asked, not the current one"


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[torch.dtype, float]]:
    """The seconds of a matrix product in each dtype, on a clock that nothing else advances."""
    seconds = {torch.float32: 3.0, torch.bfloat16: 1.0}
    now = 0.0
    linear = torch.nn.functional.linear

    def timed(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        nonlocal now
        now += seconds[rows.dtype]
        return linear(rows, weight)

    monkeypatch.setattr(torch.nn.functional, "linear", timed)
    monkeypatch.setattr(devices.time, "perf_counter", lambda: now)
    devices._cpu_gains_by_bfloat16.cache_clear()
    yield seconds
    devices._cpu_gains_by_bfloat16.cache_clear()


@pytest.mark.parametrize(("gain", "dtype"), [(3.0, torch.bfloat16), (1.2, torch.float32), (0.5, torch.float32)])
def test_bfloat16_is_chosen_on_a_cpu_that_multiplies_it_faster(
    gain: float, dtype: torch.dtype, seconds: dict[torch.dtype, float], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    seconds[torch.float32] = gain
    assert choose_dtype("auto", CPU) is dtype
    assert f"Computing in {name_of(dtype)} on cpu." in caplog.text
    seconds[torch.float32] = 4 - gain
    assert choose_dtype("auto", CPU) is dtype, "measured once"


def test_dtypes_by_name() -> None:
    assert choose_dtype("auto", CPU) in (torch.float32, torch.bfloat16)
    assert choose_dtype("bfloat16", CPU) is torch.bfloat16
    with pytest.raises(UserError, match=r"Unknown --dtype 'float23'.*'float32'"):
        choose_dtype("float23", CPU)


def test_the_peak_counts_memory_held_at_the_same_time() -> None:
    kilobyte = 256  # float32 numbers

    def run() -> None:
        first = torch.empty(4 * kilobyte)
        second = torch.empty(2 * kilobyte)
        del first
        third = torch.empty(3 * kilobyte)
        del second, third

    assert peak_bytes(run, CPU) == 6 * 1024, "first and second together; second and third together are 5"


def test_earlier_allocations_do_not_count() -> None:
    weight = torch.randn(64, 64)
    assert peak_bytes(lambda: weight @ weight, CPU) == weight.nbytes


def test_the_free_memory_of_the_cpu() -> None:
    synchronize(CPU)
    assert free_bytes(CPU) > 2**20


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_the_memory_of_a_gpu() -> None:
    device = choose_device("cuda")
    left = torch.randn(1024, 1024, device=device)
    assert free_bytes(device) > left.nbytes
    assert left.nbytes <= peak_bytes(lambda: left.exp(), device) < 2 * left.nbytes


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_device_and_dtype(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        import_module(name).main(["--help"])
    _has_device_and_dtype(capsys.readouterr().out)


@pytest.mark.parametrize("name", ["chat", "rois", "serve"])
def test_every_subcommand_has_device_and_dtype(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main([name, "--help"])
    _has_device_and_dtype(capsys.readouterr().out)


def _has_device_and_dtype(found: str) -> None:
    parser = argparse.ArgumentParser()
    add_device_arguments(parser)
    options = parser.format_help().partition("--device DEVICE ")[2]
    assert " ".join(options.split()).removeprefix("auto") in " ".join(found.split())
