"""The side panel: drawings, sentences and numbers about the last answers."""

from collections.abc import Sequence
from typing import NamedTuple

import psutil
from PIL import Image
from torch import Tensor

from demo.generation import Generation
from demo.models import OpenModel
from demo.session import Seen, SeenImage
from sparse_vlm.draw import draw_heat, draw_sampling_steps, to_image_coordinates
from sparse_vlm.encoder.runtime.sampling_steps import covered_share, nearest_token, spread_over_rois

ALL = 0  # a choice of tokens; 1 is the first token
ROWS = (
    "visual tokens of an image",
    "tokens of the prompt",
    "vision tower",
    "time to the first token",
    "each further token",
    "tokens of the answer",
    "weights",
)


class Choice(NamedTuple):
    """Values of the panel's controls; all numbers count from 1.

    Attributes:
        image: an image of the conversation.
        step: a sampling step.
        token: a visual token, or ALL.
        colour_by: "token": draw the chosen step only; "step": draw all steps up to it, over each other.
        points: draw the sampling points.
        answer_token: a token of the answer, or ALL for their mean.
    """

    image: int
    step: int
    token: int
    colour_by: str
    points: bool
    answer_token: int


def draw_rois(seen: Seen, choice: Choice) -> Image.Image:
    """Draw the RoIs over the image."""
    image = seen.images[choice.image - 1]
    first = 0 if choice.colour_by == "step" else choice.step - 1
    steps = image.steps[first : choice.step]
    tokens = range(steps[0].rois.shape[1]) if choice.token == ALL else [choice.token - 1]
    return draw_sampling_steps(image.pixels.numpy(), steps, 0, tokens, choice.colour_by, choice.points, image.boxes)


def describe_rois(seen: Seen, choice: Choice) -> str:
    """Write a sentence on the share of the image in the RoIs of the chosen step."""
    image = seen.images[choice.image - 1]
    rois = image.steps[choice.step - 1].rois[0]
    whole = covered_share(rois)
    tokens = f"{len(rois)} tokens"
    if image.boxes:
        tokens += f" ({image.region_tokens} of them for {_boxes(image)})"
    text = f"Step {choice.step} of {len(image.steps)}: {tokens} cover {whole:.0%} of the image"
    if choice.token == ALL:
        return f"{text}."
    return f"{text}, token {choice.token} alone {covered_share(rois[choice.token - 1 : choice.token]):.0%}."


def draw_attention(seen: Seen, choice: Choice) -> Image.Image:
    """Draw the attention of the answer, or of one of its tokens, spread over the RoIs of the last step."""
    image = seen.images[choice.image - 1]
    heat = spread_over_rois(image.steps[-1].rois[0], _weights(image, choice))
    return draw_heat(image.pixels.numpy(), heat, image.boxes)


def describe_attention(seen: Seen, choice: Choice) -> str:
    """Write a sentence on the share of attention that went to the image."""
    share = float(_weights(seen.images[choice.image - 1], choice).sum())
    subject = "The answer" if choice.answer_token == ALL else "This token"
    return f"{subject} gave {share:.0%} of its attention to this image (mean over layers, heads and tokens)."


def token_at(seen: Seen, choice: Choice, x: float, y: float) -> int:
    """Find the token, counted from 1, whose RoI center is nearest to a pixel of the drawing."""
    image = seen.images[choice.image - 1]
    place = to_image_coordinates(image.pixels.numpy(), x, y)
    return 1 + nearest_token(image.steps[choice.step - 1].rois[0], *place)


def count_tokens(seen: Seen | None) -> str | None:
    """Write the number of visual tokens of the last image, and of its regions; None if unknown."""
    if seen is None:
        return None
    image = seen.images[-1]
    whole, *regions = (view.tokens for view in image.views)
    return f"{whole}" if not regions else f"{whole} + {sum(regions)} for {_boxes(image)}"


def numbers(models: Sequence[OpenModel], generations: Sequence[Generation], visual_tokens: Sequence[str | None]) -> str:
    """Write a Markdown table of the cost of the last answers.

    Args:
        models: all models.
        generations: one for each model that has answered, in the order of `models`.
        visual_tokens: for each model, the visual tokens of an image as text; None if unknown.
    """
    rows: dict[str, list[str]] = {name: [] for name in ROWS}
    for opened, generation, count in zip(models, generations, visual_tokens, strict=False):
        values = (
            "–" if count is None else count,
            str(generation.inputs["input_ids"].shape[1]),
            _milliseconds(generation.tower_seconds),
            _milliseconds(generation.first_seconds),
            _milliseconds(generation.seconds_per_token),
            str(len(generation.ids)),
            f"{opened.weight_bytes / 2**20:.0f} MiB",
        )
        for name, value in zip(ROWS, values, strict=True):
            rows[name].append(value)
    head = "| | " + " | ".join(opened.name for opened in models[: len(generations)]) + " |"
    lines = [head, "|---|" + "---:|" * len(generations)]
    lines += [f"| {name} | " + " | ".join(values) + " |" for name, values in rows.items()]
    return "\n".join(lines) + f"\n\nMemory of the whole process: {psutil.Process().memory_info().rss / 2**20:.0f} MiB."


def _boxes(image: SeenImage) -> str:
    return "the box" if len(image.boxes) == 1 else f"{len(image.boxes)} boxes"


def _milliseconds(seconds: float | None) -> str:
    return "–" if seconds is None else f"{1e3 * seconds:.1f} ms"


def _weights(image: SeenImage, choice: Choice) -> Tensor:
    return image.attention.mean(dim=0) if choice.answer_token == ALL else image.attention[choice.answer_token - 1]
