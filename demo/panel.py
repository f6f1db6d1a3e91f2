"""The side panel: drawings, sentences and numbers about the last answers."""

from collections.abc import Sequence
from typing import NamedTuple

import psutil
from PIL import Image
from torch import Tensor

from demo.generation import Generation
from demo.models import OpenModel
from demo.session import View
from sparse_vlm.draw import draw_heat, draw_sampling_steps, to_image_coordinates
from sparse_vlm.encoder.runtime.sampling_steps import covered_share, nearest_token, spread_over_rois

ALL = 0  # a choice of tokens; 1 is the first token
ROWS = (
    "visual tokens of an image",
    "tokens of the prompt",
    "vision tower",
    "projector, prompt, first token",
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


def draw_rois(view: View, choice: Choice) -> Image.Image:
    """Draw the RoIs over the image."""
    first = 0 if choice.colour_by == "step" else choice.step - 1
    steps = view.steps[first : choice.step]
    tokens = range(steps[0].rois.shape[1]) if choice.token == ALL else [choice.token - 1]
    image = view.pixels[choice.image - 1].numpy()
    return draw_sampling_steps(image, steps, choice.image - 1, tokens, choice.colour_by, choice.points)


def describe_rois(view: View, choice: Choice) -> str:
    """Write a sentence on the share of the image in the RoIs of the chosen step."""
    rois = view.steps[choice.step - 1].rois[choice.image - 1]
    whole = covered_share(rois)
    text = f"Step {choice.step} of {len(view.steps)}: {len(rois)} tokens cover {whole:.0%} of the image"
    if choice.token == ALL:
        return f"{text}."
    return f"{text}, token {choice.token} alone {covered_share(rois[choice.token - 1 : choice.token]):.0%}."


def draw_attention(view: View, choice: Choice) -> Image.Image:
    """Draw the attention of the answer, or of one of its tokens, spread over the RoIs of the last step."""
    weights = _weights(view, choice)[choice.image - 1]
    heat = spread_over_rois(view.steps[-1].rois[choice.image - 1], weights)
    return draw_heat(view.pixels[choice.image - 1].numpy(), heat)


def describe_attention(view: View, choice: Choice) -> str:
    """Write a sentence on the share of attention that went to the image."""
    share = float(_weights(view, choice)[choice.image - 1].sum())
    subject = "The answer" if choice.answer_token == ALL else "This token"
    return f"{subject} gave {share:.0%} of its attention to this image (mean over layers, heads and tokens)."


def token_at(view: View, choice: Choice, x: float, y: float) -> int:
    """Find the token, counted from 1, whose RoI center is nearest to a pixel of the drawing."""
    place = to_image_coordinates(view.pixels[choice.image - 1].numpy(), x, y)
    return 1 + nearest_token(view.steps[choice.step - 1].rois[choice.image - 1], *place)


def numbers(models: Sequence[OpenModel], generations: Sequence[Generation], visual_tokens: Sequence[int | None]) -> str:
    """Write a Markdown table of the cost of the last answers.

    Args:
        models: all models.
        generations: one for each model that has answered, in the order of `models`.
        visual_tokens: for each model, the visual tokens of an image; None if unknown.
    """
    rows: dict[str, list[str]] = {name: [] for name in ROWS}
    for opened, generation, count in zip(models, generations, visual_tokens, strict=False):
        values = (
            "–" if count is None else str(count),
            str(generation.inputs["input_ids"].shape[1]),
            _milliseconds(generation.tower_seconds),
            _milliseconds(generation.first_seconds - (generation.tower_seconds or 0)),
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


def _milliseconds(seconds: float | None) -> str:
    return "–" if seconds is None else f"{1e3 * seconds:.1f} ms"


def _weights(view: View, choice: Choice) -> Tensor:
    return view.attention.mean(dim=0) if choice.answer_token == ALL else view.attention[choice.answer_token - 1]
