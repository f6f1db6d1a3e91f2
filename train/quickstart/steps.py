"""The quickstart's steps as commands, and all settings in one place."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from sparse_vlm.data.easy_vqa import CLASSES
from train import outcomes
from train.pipeline import Step, packaged_llm, short_training
from train.quickstart.paths import Paths

COUNTS = "4-36"  # latent tokens of the student, and visual tokens of the tuned model
TOWERS = ("SparseFormer", "dense teacher")
CHAT_TEMPLATE = Path(__file__).parent / "chat_template.jinja"


@dataclass(frozen=True)
class Recipe:
    """The settings of a run. Tune them on the questions of data/validation.json, never on the test questions."""

    teacher_steps: int
    bootstrap_steps: int
    word_start: int
    align_steps: int
    texts: int
    images_by_answer: int
    images_by_colour: int
    validation_images: int
    test_images: int | None
    save_steps: int  # of the teacher and the bootstrap; the others are too short for the 6 s of a checkpoint
    timed_batches: int
    seed: int = 42  # of the data and of every training stage


FULL = Recipe(
    teacher_steps=1000,
    bootstrap_steps=1200,
    word_start=4000,
    align_steps=40,
    texts=160,
    images_by_answer=320,
    images_by_colour=240,
    validation_images=200,
    test_images=None,
    save_steps=280,
    timed_batches=4,
)
FAST = Recipe(
    teacher_steps=4,
    bootstrap_steps=4,
    word_start=32,
    align_steps=2,
    texts=8,
    images_by_answer=4,
    images_by_colour=4,
    validation_images=50,
    test_images=10,
    save_steps=2,
    timed_batches=1,
)


def reads_test_split(step: Step, paths: Paths) -> bool:
    """Return True if a step's command names the test images, the test questions or the test split."""
    return not {"test", str(paths.test_images), str(paths.test_questions)}.isdisjoint(step.arguments)


def all_steps(paths: Paths, recipe: Recipe, compare: bool) -> list[Step]:
    """Return the steps in order; `compare` appends those of the dense tower."""
    steps = [_data(paths, recipe), _teacher(paths, recipe), _bootstrap(paths, recipe), _zero_shot(paths)]
    steps += _language_steps(paths, recipe, vision=paths.encoder, root=paths.root, prefix="")
    if compare:
        dense = paths.root / "dense"
        steps += _language_steps(paths, recipe, vision=paths.teacher, root=dense, prefix="dense_")
        steps += [_step_time(paths, recipe, dense / "built"), _first_token(paths, dense / "model")]
    return steps


def _data(paths: Paths, recipe: Recipe) -> Step:
    arguments = ["-m", "train.quickstart.data", "--output_dir", str(paths.data)]
    arguments += ["--texts", str(recipe.texts), "--images_by_answer", str(recipe.images_by_answer)]
    arguments += ["--images_by_colour", str(recipe.images_by_colour)]
    arguments += ["--validation_images", str(recipe.validation_images), "--seed", str(recipe.seed)]
    if recipe.test_images is not None:
        arguments += ["--test_images", str(recipe.test_images)]
    instruct = paths.data / "instruct.json"
    return Step("data", "easy-VQA as LLaVA data", tuple(arguments), instruct, shows=partial(outcomes.samples, instruct))


def _teacher(paths: Paths, recipe: Recipe) -> Step:
    arguments = ["-m", "train.quickstart.teacher", "--data_path", str(paths.data / "captions.json")]
    arguments += ["--image_folder", str(paths.train_images), "--learning_rate", "1e-3", "--warmup_steps", "0.05"]
    arguments += ["--per_device_train_batch_size", str(len(CLASSES)), "--train_sampling_strategy", "sequential"]
    arguments += short_training(paths.teacher, recipe.teacher_steps, recipe.save_steps, seed=recipe.seed)
    result = paths.teacher / "open_clip_config.json"
    shows = partial(outcomes.loss, paths.teacher)
    return Step("teacher", "A tiny CLIP as the teacher", tuple(arguments), result, paths.teacher, shows)


def _bootstrap(paths: Paths, recipe: Recipe) -> Step:
    arguments = ["-m", "train.bootstrap", "--teacher", str(paths.teacher), "--data_path", str(paths.train_images)]
    arguments += ["--eval_data_path", str(paths.validation_images), "--tokens", COUNTS, "--default_tokens", "16"]
    arguments += ["--focus_repeats", "2", "--stem_channels", "32", "--min_crop_area", "0.5"]
    arguments += ["--learning_rate", "2e-3", "--warmup_steps", "0.05", "--per_device_train_batch_size", "16"]
    arguments += short_training(paths.encoder, recipe.bootstrap_steps, recipe.save_steps, seed=recipe.seed)
    title = "Bootstrapping: a SparseFormer of 4 to 36 tokens, without labels"
    shows = partial(outcomes.cosine, paths.encoder)
    return Step("bootstrap", title, tuple(arguments), paths.encoder / "config.json", paths.encoder, shows)


def _zero_shot(paths: Paths) -> Step:
    arguments = ["-m", "eval.encoders.zero_shot", "--teacher", str(paths.teacher), "--encoder", str(paths.encoder)]
    arguments += ["--split", "test", "--tokens", "4,9,25,36", "--output", str(paths.zero_shot)]
    title, shows = "Zero-shot classification by teacher and student", partial(outcomes.zero_shot, paths.zero_shot)
    return Step("zero_shot", title, tuple(arguments), paths.zero_shot, shows=shows)


def _step_time(paths: Paths, recipe: Recipe, dense_built: Path) -> Step:
    arguments = ["-m", "train.quickstart.step_time", "--models", str(paths.root / "built"), str(dense_built)]
    arguments += ["--data_path", str(paths.data / "instruct.json"), "--image_folder", str(paths.train_images)]
    arguments += ["--batches", str(recipe.timed_batches), "--output", str(paths.step_time)]
    title, shows = "Seconds of a training step, side by side", partial(outcomes.seconds, paths.step_time, TOWERS)
    return Step("step_time", title, tuple(arguments), paths.step_time, shows=shows)


def _first_token(paths: Paths, dense_model: Path) -> Step:
    arguments = ["-m", "eval.cost.first_token", "--models", str(paths.model), str(dense_model)]
    arguments += ["--questions", str(paths.validation_questions), "--images", str(paths.validation_images)]
    arguments += ["--output", str(paths.first_token)]
    shows = partial(outcomes.seconds, paths.first_token, TOWERS, "first_token")
    title = "Seconds to the first token, side by side"
    return Step("first_token", title, tuple(arguments), paths.first_token, shows=shows)


def _language_steps(paths: Paths, recipe: Recipe, vision: Path, root: Path, prefix: str) -> list[Step]:
    """Return build, read, align, instruct and evaluate for a vision tower, an encoder or a teacher directory."""
    built, reading, aligned, model = (root / name for name in ("built", "reading", "aligned", "model"))
    answers, blind, scores = root / "answers.jsonl", root / "answers_no_image.jsonl", root / "scores.json"
    questions = str(paths.test_questions)
    template = ["--chat_template", str(CHAT_TEMPLATE)]
    build = ["-m", "sparse_vlm", "build", str(vision), str(packaged_llm()), str(built), *template]
    # A constant rate, because the last third of this stage learns the most.
    read = ["-m", "train.instruct", "--model_name_or_path", str(built), "--independent_turns", "True"]
    read += ["--data_path", str(paths.data / "reading.json"), "--train_sampling_strategy", "sequential"]
    read += ["--learning_rate", "1e-4", "--lr_scheduler_type", "constant_with_warmup", "--warmup_steps", "5"]
    read += ["--per_device_train_batch_size", "4"]
    read += short_training(reading, None, None, seed=recipe.seed)
    align = ["-m", "train.align", "--model_name_or_path", str(reading), "--word_start", str(recipe.word_start)]
    align += ["--data_path", str(paths.data / "captions.json"), "--image_folder", str(paths.train_images)]
    align += ["--learning_rate", "3e-5", "--warmup_steps", "5", "--per_device_train_batch_size", "8"]
    align += short_training(aligned, recipe.align_steps, None, seed=recipe.seed)
    instruct = ["-m", "train.instruct", "--model_name_or_path", str(aligned), "--independent_turns", "True"]
    instruct += ["--data_path", str(paths.data / "instruct.json"), "--image_folder", str(paths.train_images)]
    instruct += ["--learning_rate", "1e-4", "--mm_projector_lr", "3e-5", "--warmup_steps", "5"]
    instruct += ["--unfreeze_mm_vision_tower", "True", "--mm_vision_tower_lr", "3e-5"]
    instruct += ["--per_device_train_batch_size", "8", "--train_sampling_strategy", "sequential"]
    instruct += [] if prefix else ["--visual_tokens", COUNTS]  # the dense tower's number is fixed
    instruct += short_training(model, None, None, seed=recipe.seed)
    generate = ["-m", "eval.generate", "easy_vqa", "--model", str(model), "--questions", questions]
    generate += ["--images", str(paths.test_images)]
    score = ["-m", "eval.score", "easy_vqa", "--questions", questions, "--annotations", questions]
    score += ["--answers", str(answers), "--no_image_answers", str(blind), "--output", str(scores)]
    on = "the dense teacher" if prefix else "SparseFormer"
    shown = {folder: partial(outcomes.loss, folder) for folder in (reading, aligned, model)}
    reads = "The language model learns the questions from words"
    blindly = "The same without the images: the floor"
    ask, ask_blindly = (*generate, "--answers", str(answers)), (*generate, "--no_image", "--answers", str(blind))
    steps = [
        Step(
            "build", f"SmolLM2-135M on {on}", tuple(build), built / "config.json", None, partial(outcomes.tokens, built)
        ),
        Step("read", reads, tuple(read), reading / "config.json", reading, shown[reading]),
        Step("align", "Alignment of the projector", tuple(align), aligned / "config.json", aligned, shown[aligned]),
        Step("instruct", "Instruction tuning", tuple(instruct), model / "config.json", model, shown[model]),
        # answers.jsonl grows during generation, so only the scores tell that these steps are done.
        Step("evaluate", "All test questions", ask, scores, answers, partial(outcomes.answers, answers)),
        Step("evaluate_no_image", blindly, ask_blindly, scores, blind, partial(outcomes.answers, blind)),
        Step("score", "Scores", tuple(score), scores, None, partial(outcomes.accuracy, scores)),
    ]
    return [replace(step, name=f"{prefix}{step.name}") for step in steps]
