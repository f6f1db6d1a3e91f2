"""The alignment stage end to end on a tiny VLM."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sparse_vlm.vlm.build import build_vlm
from sparse_vlm.vlm.loading import load_vlm
from tests.forked import run_together
from tests.train.launch import deepspeed
from train import align
from train.stages.log import read_log


def flags(vlm_dir: Path, data_dir: Path, out: Path, **options: object) -> list[str]:
    """Return the command line of a short run on the CPU."""
    values = {
        "model_name_or_path": vlm_dir,
        "data_path": data_dir / "captions.json",
        "image_folder": data_dir,
        "output_dir": out,
        "use_cpu": True,
        "bf16": False,
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 4,
        "max_steps": 6,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    return [word for name, value in {**values, **options}.items() for word in (f"--{name}", str(value))]


def losses(out: Path) -> list[float]:
    return [line["loss"] for line in read_log(out / "log.jsonl") if "loss" in line]


def changed(before: Path, after: Path) -> set[str]:
    """Return the modules of a model directory whose weights differ."""
    old, new = (load_file(folder / "model.safetensors") for folder in (before, after))
    assert old.keys() == new.keys()
    names = {part for name in old if not torch.equal(old[name], new[name]) for part in name.split(".")}
    return names & {"vision_tower", "multi_modal_projector", "language_model"}


@pytest.mark.slow
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
    assert "frozen" in (tmp_path / "out" / "parameter_groups.txt").read_text()
    start, result = (load_vlm(folder)[0].config.to_dict() for folder in (vlm_dir, tmp_path / "out"))
    assert result["provenance"] == start["provenance"] | {"stages": [{"stage": "align", "data": ["captions.json"]}]}
    assert result | {name: start[name] for name in ("_name_or_path", "provenance")} == start
    assert "- align: captions.json" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.slow
def test_text_only_batches_neither_fail_nor_move_the_projector(vlm_dir: Path, data_dir: Path, tmp_path: Path) -> None:
    arguments = flags(vlm_dir, data_dir, tmp_path / "out", data_path=data_dir / "text.json", max_steps=2)
    assert align.main(arguments) == 0
    assert changed(vlm_dir, tmp_path / "out") == set()
    assert [line["grad_norm"] for line in read_log(tmp_path / "out" / "log.jsonl")] == [0, 0]


@pytest.mark.slow
def test_a_second_run_into_a_finished_directory_is_refused(
    vlm_dir: Path, data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert align.main(flags(vlm_dir, data_dir, tmp_path)) == 2
    assert "already holds a finished model" in capsys.readouterr().err


@pytest.mark.slow
def test_plain_captions_train(vlm_dir: Path, data_dir: Path, tmp_path: Path) -> None:
    assert align.main(flags(vlm_dir, data_dir, tmp_path / "out", version="plain", max_steps=2)) == 0
    template = "chat_template.jinja"
    assert (tmp_path / "out" / template).read_text() == (vlm_dir / template).read_text(), "the model's own stays"


@pytest.mark.slow
def test_a_model_of_native_aspect_trains(encoder_dir: Path, llm_dir: Path, data_dir: Path, tmp_path: Path) -> None:
    build_vlm(encoder_dir, llm_dir, tmp_path / "native", aspect="native")
    assert align.main(flags(tmp_path / "native", data_dir, tmp_path / "out", max_steps=2)) == 0
    assert changed(tmp_path / "native", tmp_path / "out") == {"multi_modal_projector"}
    processor = load_vlm(tmp_path / "out")[1]
    assert processor.image_processor.aspect == "native"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"version": "plane"}, "Unknown --version 'plane'. Did you mean 'plain'"),
        ({"version": "plain", "independent_turns": True}, "--version plain has no turns"),
        ({"eval_strategy": "steps"}, "--eval_strategy steps needs held-out data: give --eval_data_path"),
        ({"eval_data_path": "x.json"}, "--eval_data_path x.json needs --eval_strategy"),
        ({"model_max_lenght": 3}, "Unknown option --model_max_lenght. Did you mean --model_max_length?"),
    ],
)
def test_meaningless_settings_are_a_one_line_error(
    vlm_dir: Path,
    data_dir: Path,
    tmp_path: Path,
    options: dict[str, object],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert align.main(flags(vlm_dir, data_dir, tmp_path / "out", **options)) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_checkpoints_hold_trained_weights_and_tensorboard_the_curves(
    vlm_dir: Path, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evaluations every second step, on images and text-only samples."""
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "curves"))
    evaluation = {"eval_strategy": "steps", "eval_steps": 2, "eval_data_path": data_dir / "chats.json"}
    options = {"max_steps": 4, "save_steps": 2, "keep_checkpoints": True, "report_to": "tensorboard", **evaluation}
    assert align.main(flags(vlm_dir, data_dir, tmp_path / "out", **options)) == 0
    checkpoint = tmp_path / "out" / "checkpoint-4"
    names = load_file(checkpoint / "trained.safetensors").keys()
    assert names
    assert all(name.startswith("model.multi_modal_projector.") for name in names)
    assert not (checkpoint / "model.safetensors").exists()
    bytes_of = {folder: sum(f.stat().st_size for f in folder.iterdir()) for folder in (checkpoint, vlm_dir)}
    assert bytes_of[checkpoint] < 0.05 * bytes_of[vlm_dir]
    evaluations = [line["eval_loss"] for line in read_log(tmp_path / "out" / "log.jsonl") if "eval_loss" in line]
    assert len(evaluations) == 2
    assert evaluations[1] != evaluations[0]
    assert list((tmp_path / "curves").rglob("events.out.tfevents.*"))


@pytest.mark.slow
def test_eval_loss_does_not_depend_on_the_batch_size(vlm_dir: Path, data_dir: Path, tmp_path: Path) -> None:
    """Captions and one-token answers: an average of batch means would differ by some percent."""
    found = []
    for size in (1, 2, 5, 6):
        options = {"eval_strategy": "steps", "eval_steps": 1, "eval_data_path": data_dir / "mixed.json"}
        options |= {"per_device_eval_batch_size": size, "max_steps": 1}
        samples = [json.loads((data_dir / f"{name}.json").read_text()) for name in ("captions", "text")]
        (data_dir / "mixed.json").write_text(json.dumps(samples[0][:3] + samples[1][:4]))
        assert align.main(flags(vlm_dir, data_dir, tmp_path / str(size), **options)) == 0
        found += [line["eval_loss"] for line in read_log(tmp_path / str(size) / "log.jsonl") if "eval_loss" in line]
    assert found == pytest.approx([found[0]] * 4, rel=1e-5)


@pytest.mark.slow
def test_a_run_cannot_resume_without_the_optimizer(
    vlm_dir: Path, data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = flags(vlm_dir, data_dir, tmp_path / "out", max_steps=2, save_steps=1, save_only_model=True)
    assert align.main([*arguments, "--keep_checkpoints", "True"]) == 0
    (tmp_path / "out" / "config.json").unlink()
    assert align.main(arguments) == 2
    assert "written with --save_only_model True" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "cannot start with these options: One of min_lr or min_lr_rate"),
        ({"optim": "galore_adamw"}, "Training cannot start with these options: "),
        ({"use_liger_kernel": True}, "Training cannot start with these options: "),
        ({"push_to_hub": True}, "Training cannot start with these options: "),
        ({"bf16_full_eval": True}, "--bf16_full_eval has no effect"),
    ],
)
def test_options_that_transformers_refuses_is_a_one_line_error(
    vlm_dir: Path,
    data_dir: Path,
    tmp_path: Path,
    options: dict[str, object],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert align.main(flags(vlm_dir, data_dir, tmp_path / "out", **options)) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert len(printed.strip().splitlines()[-1]) < 700


@pytest.mark.slow
def test_a_mixture_trains_and_lists_skipped_samples(vlm_dir: Path, data_dir: Path, tmp_path: Path) -> None:
    bad = [{"id": "lost", "image": "lost.png", "conversations": []}]
    (tmp_path / "bad.json").write_text(json.dumps(bad))
    entries = [{"data_path": f"{data_dir}/{name}.json", "image_folder": str(data_dir)} for name in ("captions", "text")]
    entries[1]["weight"] = 0.5  # type: ignore[assignment]
    (tmp_path / "mixture.yaml").write_text(json.dumps([*entries, {"data_path": "bad.json"}]))
    options = {"data_path": tmp_path / "mixture.yaml", "on_bad_sample": "skip", "per_device_train_batch_size": 1}
    arguments = flags(vlm_dir, data_dir, tmp_path / "out", max_steps=-1, num_train_epochs=1, **options)
    assert align.main(arguments) == 0
    assert len(losses(tmp_path / "out")) == 6 + 3
    assert (tmp_path / "out" / "skipped_samples.txt").read_text() == 'Sample lost has no "conversations" list.\n'


@pytest.mark.slow
@pytest.mark.parametrize("choice", ["error", "skip", "truncate"])
def test_a_sample_over_the_length_is_found_before_the_first_step(
    vlm_dir: Path,
    data_dir: Path,
    tmp_path: Path,
    choice: str,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """LLaVA#999: such a sample stopped the third step, and again at every restart."""
    records = json.loads((data_dir / "captions.json").read_text())
    turns = [{"from": "human", "value": "<image>\nCount."}, {"from": "gpt", "value": "one, two, three. " * 40}]
    records.append({"id": "long", "image": "red.png", "conversations": turns})
    (tmp_path / "data.json").write_text(json.dumps(records))
    options = {"data_path": tmp_path / "data.json", "model_max_length": 200, "too_long": choice}
    arguments = flags(vlm_dir, data_dir, tmp_path / "out", max_steps=-1, num_train_epochs=1, **options)
    arguments += ["--per_device_train_batch_size", "1"]
    assert align.main(arguments) == (2 if choice == "error" else 0)
    if choice == "error":
        assert "Sample long has" in capsys.readouterr().err
        assert not (tmp_path / "out" / "log.jsonl").exists()
    elif choice == "skip":
        assert len(losses(tmp_path / "out")) == 6
        assert "Sample long has" in (tmp_path / "out" / "skipped_samples.txt").read_text()
    else:
        assert len(losses(tmp_path / "out")) == 7
        assert "Truncated 1 of 7 samples to --model_max_length 200:" in caplog.text


@pytest.mark.slow
def test_bad_input_is_a_one_line_error_at_the_command_line(vlm_dir: Path, data_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "corrupt.png").write_bytes(b"\x89PNG no")
    data = tmp_path / "data.json"
    turns = '[{"from": "human", "value": "<image>\\nQ"}, {"from": "gpt", "value": "A"}]'
    data.write_text(f'[{{"id": "s", "image": "corrupt.png", "conversations": {turns}}}]')
    options = {"data_path": data, "image_folder": tmp_path, "dataloader_num_workers": 1}
    command = ["-m", "train.align", *flags(vlm_dir, data_dir, tmp_path / "out", **options)]
    printed = run_together(command, [{}], tmp_path / "printed.txt", exitcode=2)
    assert printed.splitlines()[-1].startswith("error: Sample s: The image ")
    assert "Traceback" not in printed


@pytest.mark.slow
def test_two_processes_with_zero2_follow_one_process(vlm_dir: Path, data_dir: Path, tmp_path: Path) -> None:
    """With --word_start, the same global batches in the same order. The sums have another order, so the
    curves drift apart by rounding (float32), which AdamW amplifies where gradients are near zero: 1e-3 of a loss of
    about 10."""
    common = {"train_sampling_strategy": "sequential", "max_steps": 5, "word_start": 6}
    assert align.main(flags(vlm_dir, data_dir, tmp_path / "one", per_device_train_batch_size=2, **common)) == 0
    options = {"per_device_train_batch_size": 1, "deepspeed": "train/configs/deepspeed/zero2.json", "num_processes": 2}
    deepspeed("train.align", flags(vlm_dir, data_dir, tmp_path / "two", **common, **options))
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-3)
    assert changed(vlm_dir, tmp_path / "two") == {"multi_modal_projector"}
