"""The study's steps as commands."""

from collections.abc import Mapping
from functools import partial

from train import outcomes
from train.pipeline import Step, short_training
from train.quickstart.steps import CHAT_TEMPLATE
from train.studies.photographs.paths import DENSE, STUDENT, Paths
from train.studies.photographs.settings import Settings

SIDES = (STUDENT, DENSE)
NAMES = {STUDENT: "the SparseFormer", DENSE: "the dense teacher"}
BATCH = "8"


def token_counts(settings: Settings, side: str) -> tuple[int | None, ...]:
    """Return the numbers of visual tokens that a side is measured with; None: its own."""
    return settings.tokens if side == STUDENT else (None,)


def search_steps(settings: Settings, paths: Paths) -> list[Step]:
    """Return the steps up to the validation scores of both sides at all learning rates. They see no test photograph."""
    steps = [_data(settings, paths, "training"), _data(settings, paths, "validation")]
    for side in SIDES:
        steps.append(_build(settings, paths, side))
        steps += [_read(settings, paths)] if side == STUDENT else []
        steps.append(_align(settings, paths, side))
        for rate in settings.learning_rates:
            steps.append(_instruct(settings, paths, side, rate))
            for count in token_counts(settings, side):
                steps += _measure(settings, paths, side, rate, "validation", count)
    return steps


def report_steps(settings: Settings, paths: Paths, rates: Mapping[str, float], probe: bool) -> list[Step]:
    """Return the steps that measure the chosen models on the test photographs, for the report alone.

    Args:
        settings: the settings.
        paths: the run's files.
        rates: side -> the learning rate that was chosen.
        probe: also measure a linear probe of teacher and student.
    """
    steps = [_data(settings, paths, "test")]
    for side in SIDES:
        for count in token_counts(settings, side):
            for questions in ("test", "blank"):
                steps += _measure(settings, paths, side, rates[side], questions, count)
    return [*steps, _probe(settings, paths)] if probe else steps


def reads_test_photographs(step: Step, settings: Settings, paths: Paths) -> bool:
    """Return True if a step's command names the test split, its shards or its files."""
    names = {"test", settings.test_shards, *map(str, (paths.data / "test", paths.data / "test.jsonl"))}
    return not names.isdisjoint(step.arguments)


def _data(settings: Settings, paths: Paths, split: str) -> Step:
    arguments = ["-m", "train.studies.photographs.data", split, "--photographs", settings.photographs]
    arguments += ["--shards", getattr(settings, f"{split}_shards"), "--seed", str(settings.seed)]
    arguments += ["--images", str(getattr(settings, f"{split}_images")), "--output_dir", str(paths.data)]
    if split == "training":
        arguments += ["--texts", str(settings.texts), "--conversations", str(settings.conversations)]
    result = paths.data / ("instruct.json" if split == "training" else f"{split}.jsonl")
    return Step(f"data_{split}", f"Questions about {split} photographs", tuple(arguments), result)


def _build(settings: Settings, paths: Paths, side: str) -> Step:
    """The dense side takes the LLM that has read, so that both sides start from the same one."""
    built = paths.built(side)
    tower, llm = (settings.encoder, settings.llm) if side == STUDENT else (settings.teacher, str(paths.reading))
    arguments = ["-m", "sparse_vlm", "build", tower, llm, str(built), "--chat_template", str(CHAT_TEMPLATE)]
    arguments += ["--vision_feature_layer", str(settings.feature_layer), "--seed", str(settings.seed)]
    if side == DENSE:
        arguments += ["--image_size", str(settings.image_size)]
        arguments += [] if settings.teacher_layer is None else ["--teacher_layer", str(settings.teacher_layer)]
    return Step(
        f"{side}_build",
        f"The language model on {NAMES[side]}",
        tuple(arguments),
        built / "config.json",
        None,
        partial(outcomes.tokens, built),
    )


def _read(settings: Settings, paths: Paths) -> Step:
    """As in the quickstart, at a constant rate."""
    arguments = ["-m", "train.instruct", "--model_name_or_path", str(paths.built(STUDENT))]
    arguments += ["--data_path", str(paths.data / "reading.json"), "--independent_turns", "True"]
    arguments += ["--learning_rate", "1e-4", "--lr_scheduler_type", "constant_with_warmup", "--warmup_steps", "5"]
    arguments += ["--per_device_train_batch_size", "4", "--train_sampling_strategy", "sequential"]
    arguments += short_training(paths.reading, None, settings.save_steps, cpu=settings.cpu)
    title = "The language model learns the questions from words"
    shows = partial(outcomes.loss, paths.reading)
    return Step("read", title, tuple(arguments), paths.reading / "config.json", paths.reading, shows)


def _align(settings: Settings, paths: Paths, side: str) -> Step:
    start, aligned = paths.reading if side == STUDENT else paths.built(side), paths.aligned(side)
    arguments = ["-m", "train.align", "--model_name_or_path", str(start), "--word_start", str(settings.word_start)]
    arguments += ["--data_path", str(paths.data / "captions.json"), *_photographs(settings, paths, side)]
    arguments += ["--learning_rate", "3e-5", "--warmup_steps", "5", "--per_device_train_batch_size", BATCH]
    arguments += short_training(aligned, settings.align_steps, settings.save_steps, cpu=settings.cpu)
    title = f"Alignment of {NAMES[side]}"
    shows = partial(outcomes.loss, aligned)
    return Step(f"{side}_align", title, tuple(arguments), aligned / "config.json", aligned, shows)


def _instruct(settings: Settings, paths: Paths, side: str, rate: float) -> Step:
    model = paths.model(side, rate)
    arguments = ["-m", "train.instruct", "--model_name_or_path", str(paths.aligned(side))]
    arguments += ["--data_path", str(paths.data / "instruct.json"), *_photographs(settings, paths, side)]
    arguments += ["--independent_turns", "True", "--train_sampling_strategy", "sequential"]
    arguments += ["--learning_rate", f"{rate:g}", "--mm_projector_lr", "3e-5", "--warmup_steps", "5"]
    arguments += ["--per_device_train_batch_size", BATCH]
    arguments += short_training(model, None, settings.save_steps, cpu=settings.cpu)
    title = f"Instruction tuning on {NAMES[side]} at {rate:g}"
    shows = partial(outcomes.loss, model)
    return Step(f"{side}_instruct_{rate:g}", title, tuple(arguments), model / "config.json", model, shows)


def _photographs(settings: Settings, paths: Paths, side: str) -> list[str]:
    """Return the options about the images of a training stage. The towers are frozen, so their tokens are kept."""
    arguments = ["--image_folder", str(paths.data / "training"), "--cache_visual_tokens", str(paths.cache)]
    if side == DENSE:  # its number is fixed
        return arguments
    counts = ",".join(map(str, settings.tokens))
    return [*arguments, "--visual_tokens", counts, "--token_density", "uniform"]


def _measure(settings: Settings, paths: Paths, side: str, rate: float, questions: str, count: int | None) -> list[Step]:
    """Return generation and scoring; `questions` as in `Paths.answers`."""
    answers, scores = (get(side, rate, questions, count) for get in (paths.answers, paths.scores))
    file = str(paths.data / f"{'test' if questions == 'blank' else questions}.jsonl")
    generate = ["-m", "eval.generate", "short_answers", "--model", str(paths.model(side, rate)), "--questions", file]
    generate += ["--images", str(paths.data / questions), "--answers", str(answers)]
    generate += ["--device", "cpu"] if settings.cpu else []
    generate += [] if count is None else ["--visual_tokens", str(count)]
    score = ["-m", "eval.score", "short_answers", "--questions", file, "--answers", str(answers)]
    score += ["--output", str(scores)]
    name = "_".join([side, f"{rate:g}", answers.stem])
    of = f"{NAMES[side]} at {rate:g}" + ("" if count is None else f" with {count} tokens")
    title = f"{questions.capitalize()} questions, {of}"
    # the file of answers grows during generation, so only the scores tell that it is done
    return [
        Step(f"{name}_generate", title, tuple(generate), scores, answers, partial(outcomes.answers, answers)),
        Step(f"{name}_score", f"Scores: {title}", tuple(score), scores, None, partial(outcomes.accuracy, scores)),
    ]


def _probe(settings: Settings, paths: Paths) -> Step:
    arguments = ["-m", "eval.encoders.probe", "--teacher", settings.teacher, "--encoder", settings.encoder]
    arguments += ["--image_size", str(settings.image_size), "--tokens", ",".join(map(str, settings.tokens))]
    arguments += [] if settings.teacher_layer is None else ["--teacher_layer", str(settings.teacher_layer)]
    arguments += ["--train_images", str(paths.data / "training"), "--test_images", str(paths.data / "test")]
    arguments += ["--output", str(paths.probe)]
    return Step("probe", "A linear probe of teacher and student", tuple(arguments), paths.probe)
