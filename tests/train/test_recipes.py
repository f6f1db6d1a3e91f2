"""Every recipe fits the command's arguments, its teacher exists, and its comments are correct."""

import re
import shlex
from pathlib import Path

import open_clip
import pytest
import timm
import torch

from sparse_vlm.bootstrap import bootstrap_from, open_teacher
from sparse_vlm.encoder.variants import VARIANTS
from sparse_vlm.measure.towers import count_gmacs
from train.stages.command_line import parse_arguments
from train.vision.bootstrap_arguments import (
    ARGUMENTS,
    TEACHER_DTYPES,
    BootstrapTraining,
    ImageArguments,
    ObjectiveArguments,
    StudentArguments,
)

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted(set((ROOT / "train/configs/recipes").glob("*.yaml")) - {ROOT / "train/configs/recipes/base.yaml"})
GPUS = 8


def by_name(recipe: Path) -> str:
    return recipe.stem


def parse(recipe: Path, *words: str) -> tuple[StudentArguments, ImageArguments, ObjectiveArguments, BootstrapTraining]:
    student, images, objective, training = parse_arguments(ARGUMENTS, [str(recipe), *words, "--use_cpu", "True"])
    return student, images, objective, training


def command(recipe: Path) -> list[str]:
    """Return the words of the command in a recipe's comments."""
    comment = "".join(line[1:] for line in recipe.read_text().splitlines(keepends=True) if line.startswith("#"))
    return shlex.split(comment[comment.index("deepspeed --num_gpus") :].split("\n\n")[0].replace("\\\n", " "))


def stated_cost(recipe: Path) -> tuple[float, float, float]:
    """Return the GMACs of student and teacher, and the hours, in a recipe's comments."""
    pattern = r"Cost: ([\d.]+) GMACs an image \(teacher: ([\d.]+)\)\. Estimate on 8 A100: ([\d.]+) hours"
    found = re.search(pattern, recipe.read_text())
    assert found is not None
    student, teacher, hours = map(float, found.groups())
    return student, teacher, hours


def test_there_is_a_recipe_for_each_family() -> None:
    teachers = {parse(recipe, "--data_path", "x", "--output_dir", "y")[0].teacher for recipe in RECIPES}
    for part in ("16_224.augreg", "16_384.augreg", "B-16/openai", "L-14/openai", "L-14/datacomp", "SigLIP2"):
        assert any(part in teacher for teacher in teachers), part
    assert any("large_patch14_dinov2" in teacher for teacher in teachers)
    assert any("ViTamin-L" in teacher for teacher in teachers)


@pytest.mark.parametrize("recipe", RECIPES, ids=by_name)
def test_command_and_values_fit_the_arguments(recipe: Path, tmp_path: Path) -> None:
    words = command(recipe)
    launcher = f"deepspeed --num_gpus {GPUS} --module train.bootstrap train/configs/recipes/{recipe.name}"
    assert words[:6] == launcher.split()
    flags = words[6:]
    assert flags[:2] == ["--deepspeed", "train/configs/deepspeed/zero2.json"]
    assert (ROOT / flags[1]).is_file()
    flags[flags.index("--output_dir") + 1] = str(tmp_path)
    student, images, objective, training = parse(recipe, *flags[2:])
    assert images.eval_data_path is not None
    assert training.load_best_model_at_end
    assert training.metric_for_best_model == ("centered_cosine" if objective.normalize_targets != "none" else "cosine")
    assert images.hold_out  # checkpoints are chosen on images outside the training and test sets
    assert "val" not in Path(images.eval_data_path).name
    assert training.greater_is_better
    assert objective.teacher_dtype in TEACHER_DTYPES
    batch = GPUS * training.per_device_train_batch_size * training.gradient_accumulation_steps
    assert batch == 1024  # as base.yaml states
    assert (images.zero_shot_data_path is not None) == student.teacher.startswith("open_clip:")


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("augreg_b16_224", "sparseformer-augreg-b"),
        ("augreg_l16_384", "sparseformer-augreg-l"),
        ("clip_b16", "sparseformer-clip-b"),
        ("clip_l14", "sparseformer-clip-l"),
    ],
)
def test_as_many_tokens_as_the_released_model(name: str, variant: str) -> None:
    recipe = next(recipe for recipe in RECIPES if recipe.stem == name)
    assert parse(recipe, "--data_path", "x", "--output_dir", "y")[0].token_counts.counts == (
        VARIANTS[variant].focus.tokens,
    )
    assert f": {VARIANTS[variant].focus.tokens} tokens" in recipe.read_text().splitlines()[0]


@pytest.mark.parametrize("recipe", RECIPES, ids=by_name)
def test_the_teacher_exists_with_that_tag(recipe: Path) -> None:
    library, _, name = parse(recipe, "--data_path", "x", "--output_dir", "y")[0].teacher.partition(":")
    if library == "timm":
        assert name in timm.list_models(pretrained=True)
    else:
        model, _, tag = name.partition("/")
        assert tag in open_clip.list_pretrained_tags_by_model(model)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [r for r in RECIPES if "timm:" in r.read_text()], ids=by_name)
def test_the_stated_cost_is_counted(recipe: Path) -> None:
    """For timm's teachers only: open_clip cannot build models on the meta device."""
    arguments = parse(recipe, "--data_path", "x", "--output_dir", "y")[0]
    with torch.device("meta"):
        teacher = open_teacher(arguments.teacher, pretrained=False, image_size=arguments.image_size)
        student, _ = bootstrap_from(teacher, arguments.token_counts)
    size = teacher.preprocessing.crop
    assert stated_cost(recipe)[:2] == (round(count_gmacs(student, size), 2), round(count_gmacs(teacher, size), 2))


@pytest.mark.parametrize("recipe", RECIPES, ids=by_name)
def test_the_stated_hours_follow_from_the_cost(recipe: Path) -> None:
    """docs/bootstrapping.md: the teacher once and the student three times an image, at 30 % of 8 · 312 TFLOP/s."""
    student_gmacs, teacher_gmacs, hours = stated_cost(recipe)
    images = 1024 * parse(recipe, "--data_path", "x", "--output_dir", "y")[3].max_steps
    seconds = images * (teacher_gmacs + 3 * student_gmacs) * 2e9 / (GPUS * 312e12 * 0.3)
    assert hours == round(seconds / 3600, 1)
