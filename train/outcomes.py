"""What a finished step showed, in a few words, read from its result files: for `train.pipeline.Step.shows`."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from sparse_vlm.files import read_json, read_object
from train.stages.log import LOG_NAME, read_log

LAST = 10  # logged steps whose mean is a run's final loss: that of one batch says little


def samples(file: Path) -> str:
    """Count the samples of a LLaVA JSON file."""
    return f"{len(read_json(file)):,} samples for the instruction tuning"


def loss(folder: Path) -> str:
    """Tell how the loss fell in a training stage."""
    lines = [line for line in read_log(folder / LOG_NAME) if line.get("loss") is not None]
    last = mean(line["loss"] for line in lines[-LAST:])
    return f"loss {lines[0]['loss']:.3g} → {last:.3g} in {lines[-1]['step']:,.0f} steps"


def cosine(folder: Path) -> str:
    """Tell how near a bootstrapped student is to its teacher."""
    alignment = read_object(folder / "alignment.json")
    return f"cosine {alignment['alignment_cosine']:.3f} with the teacher on {alignment['images']:,} held-out images"


def zero_shot(file: Path) -> str:
    """Tell the zero-shot accuracies of a teacher and its student."""
    found = read_object(file)
    return f"{found['student']:.1%} of {found['images']:,} images, teacher {found['teacher']:.1%}"


def tokens(folder: Path) -> str:
    """Tell the number of visual tokens of a model directory."""
    return f"{read_object(folder / 'processor_config.json')['num_image_tokens']} visual tokens"


def answers(file: Path) -> str:
    """Count the answers in a file of `eval.generate`."""
    return f"{file.read_text(encoding='utf-8').count(chr(10)):,} answers"


def accuracy(file: Path) -> str:
    """Tell the accuracy in a report of `eval.score`, and, where it was measured, that without images."""
    report = read_object(file)
    blind = report["floors"].get("no_image")
    without = "" if blind is None else f", {blind['accuracy']:.1%} without the images"
    return f"{report['scores']['accuracy']:.1%} of {report['questions']:,} questions{without}"


def seconds(file: Path, names: Sequence[str], quantity: str | None = None) -> str:
    """Compare the median seconds of several models.

    Args:
        file: JSON with "results", one for each model.
        names: the models.
        quantity: which of several medians; None: there is one.
    """
    medians = [result["median_seconds"] for result in read_object(file)["results"]]
    values = [median if quantity is None else median[quantity] for median in medians]
    return ", ".join(f"{name} {value:.3g} s" for name, value in zip(names, values, strict=True))
