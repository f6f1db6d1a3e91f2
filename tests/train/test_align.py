"""The alignment stage end to end on a tiny VLM."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sparse_vlm.vlm.build import load_vlm
from train import align
from train.log import read_log

ROOT = Path(__file__).resolve().parents[2]


def flags(vlm_dir: Path, data_dir: Path, out: Path, **options: object) -> list[str]:
    """The command line of a short run on the CPU."""
    values = {
        "model_name_or_path": vlm_dir,
        "data_path": data_dir / "captions.json",
        "image_folder": data_dir,
        "output_dir": out,
        "use_cpu": True,
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 4,
        "max_steps": 6,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    return [word for name, value in {**values, **options}.items() for word in (f"--{name}", str(value))]


def losses(out: Path) -> list[float]:
    return [line["loss"] for line in read_log(out / "log.jsonl")]


def changed(before: Path, after: Path) -> set[str]:
    """The parts of a model directory whose weights differ."""
    old, new = (load_file(folder / "model.safetensors") for folder in (before, after))
    assert old.keys() == new.keys()
    names = {part for name in old if not torch.equal(old[name], new[name]) for part in name.split(".")}
    return names & {"vision_tower", "multi_modal_projector", "language_model"}


def deepspeed(script: str, arguments: list[str], processes: int = 2) -> None:
    """Processes on the CPU, as docs/training.md says."""
    environment = os.environ | {
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    command = [str(Path(sys.executable).parent / "deepspeed"), "--num_gpus", str(processes), script, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def test_only_the_projector_changes_and_the_loss_falls(vlm_dir: Path, data_dir: Path, tmp_path: Path) -> None:
    assert align.main(flags(vlm_dir, data_dir, tmp_path / "out", max_steps=40)) == 0
    assert changed(vlm_dir, tmp_path / "out") == {"multi_modal_projector"}
    curve = losses(tmp_path / "out")
    assert len(curve) == 40
    assert sum(curve[-5:]) < sum(curve[:5]) - 1  # a random LLM leaves the projector little to gain
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert {path.name for path in vlm_dir.iterdir()} <= files
    assert not any(name.startswith(("checkpoint", ".", "training_args")) for name in files)
    for name in ("chat_template.jinja", "processor_config.json", "tokenizer.json"):
        assert (tmp_path / "out" / name).read_text() == (vlm_dir / name).read_text()
    assert "frozen" in (tmp_path / "out" / "what_trains.txt").read_text()
    start, result = (load_vlm(folder)[0].config.to_dict() for folder in (vlm_dir, tmp_path / "out"))
    assert result | {"_name_or_path": start["_name_or_path"]} == start


def test_text_only_batches_neither_fail_nor_move_the_projector(vlm_dir: Path, data_dir: Path, tmp_path: Path) -> None:
    arguments = flags(vlm_dir, data_dir, tmp_path / "out", data_path=data_dir / "text.json", max_steps=2)
    assert align.main(arguments) == 0
    assert changed(vlm_dir, tmp_path / "out") == set()
    assert [line["grad_norm"] for line in read_log(tmp_path / "out" / "log.jsonl")] == [0, 0]


def test_a_second_run_into_a_finished_directory_is_refused(
    vlm_dir: Path, data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert align.main(flags(vlm_dir, data_dir, tmp_path)) == 2
    assert "already holds a finished model" in capsys.readouterr().err


@pytest.mark.slow
def test_bad_input_is_one_sentence_at_the_command_line(vlm_dir: Path, data_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "corrupt.png").write_bytes(b"\x89PNG no")
    data = tmp_path / "data.json"
    turns = '[{"from": "human", "value": "<image>\\nQ"}, {"from": "gpt", "value": "A"}]'
    data.write_text(f'[{{"id": "s", "image": "corrupt.png", "conversations": {turns}}}]')
    options = {"data_path": data, "image_folder": tmp_path, "dataloader_num_workers": 1}
    command = [sys.executable, "train/align.py", *flags(vlm_dir, data_dir, tmp_path / "out", **options)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: Sample s: The image ")
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_two_processes_with_zero2_follow_one_process(vlm_dir: Path, data_dir: Path, tmp_path: Path) -> None:
    """The same global batches in the same order; the sums run in another order, so the curves drift apart by
    rounding (float32), which AdamW amplifies where gradients are near zero: 1e-3 of a loss of about 10."""
    common = {"train_sampling_strategy": "sequential", "max_steps": 5}
    assert align.main(flags(vlm_dir, data_dir, tmp_path / "one", per_device_train_batch_size=2, **common)) == 0
    options = {"per_device_train_batch_size": 1, "deepspeed": "train/zero2.json", "num_processes": 2}
    deepspeed("train/align.py", flags(vlm_dir, data_dir, tmp_path / "two", **common, **options))
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-3)
    assert changed(vlm_dir, tmp_path / "two") == {"multi_modal_projector"}
