"""train.bootstrap: bad input is a one-line error."""

from pathlib import Path
from typing import Any

import pytest

from tests.train.vision.bootstrap_runs import arguments, flags
from train.bootstrap import main


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data_path": "nowhere"}, "There is no image folder nowhere"),
        ({"data_path": "{empty}"}, "holds no image files"),
        ({"data_path": "{broken}"}, "broken.png"),
        ({"teacher": "nobody"}, "Cannot open the teacher 'nobody'"),
        ({"teacher": "timm:vit_smal_patch16_224"}, "Did you mean 'vit_small_patch16_224'"),
        ({"teacher": "timm:test_vit@{weights}"}, "cannot be read as a checkpoint"),
        ({"tune_blocks": 9}, "of the 6 blocks"),
        ({"drop_blocks": 6}, "of the 6 blocks"),
        ({"focus_width": 0}, "focus.width must be positive, got 0"),
        ({"eval_steps": 0, "eval_data_path": "{images}"}, "--eval_steps must lie in (0, inf), got 0"),
        ({"report_to": "tensorbord"}, "Unknown or not installed: --report_to 'tensorbord'. Did you mean 'tensorboard'"),
        ({"dataloader_num_workers": -1}, "--dataloader_num_workers must lie in [0, inf), got -1"),
        ({"seed": -1}, "--seed must lie in [0, 4294967295], got -1"),
        ({"label_smoothing_factor": 0.1}, "--label_smoothing_factor is for language models"),
        ({"train_sampling_strategy": "sequential"}, "--train_sampling_strategy sequential has no effect"),
        ({"bf16_full_eval": True}, "--bf16_full_eval has no effect"),
        ({"global_batch_size": 1024}, "A step would have 4 · 1 · 1 = 4 samples"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "cannot start with these options: One of min_lr or min_lr_rate"),
        ({"optim": "galore_adamw"}, "Training cannot start with these options: "),
        ({"neftune_noise_alpha": 5}, "Training cannot start with these options: "),
        ({"use_liger_kernel": True}, "Training cannot start with these options: "),
        ({"push_to_hub": True}, "Training cannot start with these options: "),
        ({"warmup_ratio": 2}, "--warmup_ratio must lie in [0, 1), got 2"),
        (
            {"load_best_model_at_end": True},
            "error: --load_best_model_at_end requires the save and eval strategy to match",
        ),
        ({"teacher_dtype": "float16"}, "Unknown --teacher_dtype 'float16'. Did you mean 'bfloat16'"),
        ({"alignment_weight": 0}, "finite and not negative, and at least one must be positive"),
        ({"token_weight": "nan"}, "must be finite"),
        ({"per_device_train_batch_size": 0}, "--per_device_train_batch_size must lie in [1, inf), got 0"),
        ({"per_device_eval_batch_size": 0}, "--per_device_eval_batch_size must lie in [1, inf), got 0"),
        ({"learning_rate": -1}, "--learning_rate must lie in [0, inf), got -1"),
        ({"learning_rate": "nan"}, "--learning_rate must lie in [0, inf), got nan"),
        ({"weight_decay": -1}, "--weight_decay must lie in [0, inf), got -1"),
        ({"lr_scheduler_kwargs": "{{num_cycles: 1}}"}, "An argument is not valid JSON: {num_cycles: 1} (Expecting"),
        (
            {"metric_for_best_model": "zero_shot_student", "eval_steps": 1, "eval_data_path": "{images}"},
            "--metric_for_best_model zero_shot_student cannot be measured: it needs labelled images: give --zero_shot",
        ),
        (
            {"metric_for_best_model": "eval_cosinus", "eval_steps": 1, "eval_data_path": "{images}"},
            "Unknown --metric_for_best_model 'cosinus'. Did you mean 'cosine'",
        ),
        ({"view_weight": 1}, "there is no second view"),
        ({"match_tokens": True, "inherit": False}, "--inherit False inherits none"),
        ({"ema_decay": 1}, "--ema_decay must lie in [0, 1), got 1"),
        ({"layer_decay": 0}, "--layer_decay must lie in (0, 1], got 0"),
        ({"tuned_lr_scale": -1}, "--tuned_lr_scale must lie in [0, inf), got -1"),
        ({"min_crop_area": 0}, "--min_crop_area must lie in (0, 1], got 0"),
        ({"eval_samples": 3}, "--eval_samples needs held-out images: give --eval_data_path too"),
        (
            {"hold_out": True},
            "--hold_out True leaves --eval_samples images of --data_path out of training: give --eval_samples",
        ),
        ({"hold_out": True, "eval_data_path": "{images}"}, "give --eval_samples, and the same path as --eval_data"),
        (
            {"hold_out": True, "eval_data_path": "{empty}", "eval_samples": 2},
            "give --eval_samples, and the same path as --eval_data_path",
        ),
        (
            {"hold_out": True, "eval_data_path": "{images}", "eval_samples": 8},
            "--hold_out True leaves none of the 8 images",
        ),
        ({"eval_samples": 9, "eval_data_path": "{images}"}, "asks for 9 images, but"),
        (
            {"activation_checkpointing": True, "activation_checkpointing_kwargs": '{{"offload": true}}'},
            "--activation_checkpointing_kwargs is",
        ),
        ({"eval_steps": 2}, "give --eval_data_path"),
        ({"eval_steps": 1, "save_steps": 2, "load_best_model_at_end": True}, "Make them equal"),
        (
            {"zero_shot_data_path": "nowhere", "eval_data_path": "{images}"},
            "no folder nowhere with a folder of images",
        ),
        ({"tokenz": 4}, "Unknown option --tokenz. Did you mean --tokens"),
    ],
)
def test_bad_input_is_a_one_line_error(
    clip_dir: Path,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: dict[str, Any],
    message: str,
) -> None:
    places = {"images": images, "empty": tmp_path / "empty", "broken": tmp_path / "broken"}
    places |= {"weights": tmp_path / "weights.safetensors"}
    places["empty"].mkdir()
    places["broken"].mkdir()
    (places["broken"] / "broken.png").write_bytes(b"\x89PNG nothing more")
    places["weights"].write_bytes(b"no weights")
    values = {name: str(value).format(**places) for name, value in options.items()}
    assert main([*arguments(clip_dir, images, tmp_path / "out"), *flags(values)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.splitlines()[-1].startswith("error: ")
