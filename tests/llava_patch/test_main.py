"""`python -m llava_patch`, alone and with launchers."""

import json
import sys
from pathlib import Path

import pytest
import torch
import transformers

from llava_patch.__main__ import check_module, main, split_arguments
from llava_patch.cpu import CudaIsCpu
from sparse_vlm.errors import UserError
from tests.llava_patch.tiny import ROOT, losses, run, run_forked, run_launcher, training_arguments
from tests.ports import free_port


def test_arguments_after_the_module_are_passed_on() -> None:
    assert split_arguments(["llava.train.train", "--cpu", "x"]) == (False, "llava.train.train", ["--cpu", "x"])


def test_leading_options_are_passed_to_the_module() -> None:
    """deepspeed --module runs `-m llava_patch --local_rank=3 llava.train.train …`."""
    arguments = ["--local_rank=3", "--cpu", "llava.train.train", "--bf16", "True"]
    assert split_arguments(arguments) == (True, "llava.train.train", ["--local_rank=3", "--bf16", "True"])


def test_a_missing_module_is_a_user_error() -> None:
    with pytest.raises(UserError, match="Usage: python -m llava_patch"):
        split_arguments(["--local_rank=0"])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--cup", "x"], "Unknown option --cup. Did you mean --cpu? See python -m llava_patch --help."),
        (["--cpu=1", "x"], "Unknown option --cpu=1. Did you mean --cpu? See"),
        (["--local_rank=0", "--bf16", "x"], "Unknown option --bf16. See python -m llava_patch --help."),
        (["--cup"], "Unknown option --cup. Did you mean --cpu?"),
    ],
)
def test_an_unknown_option_before_the_module_is_a_user_error(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert capsys.readouterr().err.startswith(f"error: {sentence}")


@pytest.mark.parametrize(
    ("module", "sentence"),
    [
        ("json.nothing", "There is no module json.nothing. Give a module of LLaVA"),
        ("json.decoder.x", "There is no module json.decoder.x."),
        ("nothing.at.all", "There is no module nothing.at.all."),
        ("llava/train/train.py", "There is no module llava/train/train.py."),
        (".train", "There is no module .train."),
        ("email", "A package cannot be run: email."),
    ],
)
def test_a_module_that_does_not_exist_is_a_user_error(module: str, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        check_module(module)
    assert str(caught.value).startswith(sentence)


def test_modules_and_packages_that_run_pass() -> None:
    check_module("json.tool")
    check_module("unittest")


def test_a_package_that_lacks_a_dependency_keeps_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_package").mkdir()
    (tmp_path / "broken_package/__init__.py").write_text("import a_missing_dependency\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_missing_dependency"):
        check_module("broken_package.part")


@pytest.mark.slow
def test_a_misspelt_module_of_llava_ends_in_one_line(llava: None, tmp_path: Path) -> None:
    printed = run_forked("-m", "llava_patch", "llava.train.trian", printed=tmp_path / "printed.txt", exitcode=2)
    assert printed.strip().splitlines()[-1].startswith("error: There is no module llava.train.trian.")
    assert "Traceback" not in printed


def test_cuda_means_the_cpu_only_inside_the_context() -> None:
    with CudaIsCpu():
        assert torch.zeros(2).to(device="cuda", non_blocking=True).device.type == "cpu"
        assert torch.ones(1, device=torch.device("cuda", 0)).to("cuda").device.type == "cpu"
        assert torch.zeros(2).to(torch.float64).dtype == torch.float64
    with pytest.raises((RuntimeError, AssertionError)):
        torch.zeros(2).to(device="cuda:99")


@pytest.mark.slow
def test_missing_llava_is_a_user_error(tmp_path: Path) -> None:
    """This environment's packages without llava."""
    program = (
        "import sys, importlib.util, runpy\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *rest: None if name == 'llava' else find(name, *rest)\n"
        "sys.argv = ['llava_patch', 'llava.train.train']\n"
        "runpy.run_module('llava_patch', run_name='__main__')\n"
    )
    result = run("-c", program, check=False)
    assert result.returncode == 2
    assert result.stderr.strip() == ("error: LLaVA is not installed: pip install --no-deps llava-torch==1.2.2.post1")


@pytest.mark.slow
def test_an_unknown_tower_is_a_user_error(llava: None, llama: Path, data: Path, tmp_path: Path) -> None:
    command = training_arguments(llama, "sparseformer-clip-xl", data, "plain.json", tmp_path / "llava", version="plain")
    command = ["-m", "llava_patch", "llava.train.train", *command]
    printed = run_forked(*command, printed=tmp_path / "printed.txt", exitcode=2)
    assert (
        printed.strip()
        .splitlines()[-1]
        .startswith("error: Unknown vision tower 'sparseformer-clip-xl'. Did you mean 'sparseformer-clip-l'")
    )


def two_processes(llama: Path, tower: str, data: Path, start: Path, out: Path, **options: object) -> list[str]:
    """Arguments of the first stage with two samples per process: with two processes, two steps are one epoch.

    Training continues the projector of `start`, because LLaVA creates new projectors before it sets the seed.
    """
    options |= {"version": "plain", "tune_mm_mlp_adapter": True, "per_device_train_batch_size": 2}
    options |= {"pretrain_mm_mlp_adapter": start / "mm_projector.bin"}
    return training_arguments(llama, tower, data, "plain.json", out, **options)


def check_work_was_shared(out: Path) -> None:
    """Check that two processes trained together, and that the projector was saved."""
    assert json.loads((out / "trainer_state.json").read_text())["epoch"] == 1.0
    weights = torch.load(out / "mm_projector.bin", weights_only=True)
    assert all(weight.isfinite().all() for weight in weights.values())


@pytest.fixture(scope="module")
def by_torchrun(
    pretrained: Path, llama: Path, tower: str, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Checkpoint trained by torchrun with data parallelism."""
    out = tmp_path_factory.mktemp("torchrun") / "llava-two"
    launch = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", "-m", "llava_patch"]
    run_launcher(*launch, "llava.train.train", *two_processes(llama, tower, data, pretrained, out))
    return out


@pytest.mark.slow
def test_torchrun_with_two_processes(by_torchrun: Path) -> None:
    check_work_was_shared(by_torchrun)


@pytest.mark.slow
@pytest.mark.skipif(
    transformers.__version__ < "5", reason="accelerate 0.28 does without DeepSpeed where there is no GPU"
)
def test_deepspeed_zero2_gives_the_same_curve(
    by_torchrun: Path, pretrained: Path, llama: Path, tower: str, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "llava-zero2"
    launch = [Path(sys.executable).with_name("deepspeed"), "--num_gpus", "2"]
    launch += ["--master_port", str(free_port()), "--module"]
    command = two_processes(
        llama, tower, data, pretrained, out, deepspeed=ROOT / "train" / "configs" / "deepspeed" / "zero2.json"
    )
    run_launcher(*launch, "llava_patch", "--cpu", "llava.train.train", *command, DS_ACCELERATOR="cpu")
    check_work_was_shared(out)
    assert losses(out) == pytest.approx(losses(by_torchrun), rel=1e-3)
