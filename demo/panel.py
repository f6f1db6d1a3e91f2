"""The side panel: what is drawn and written there of a view and of the last replies."""

from collections.abc import Sequence
from typing import NamedTuple

import psutil
from PIL import Image
from torch import Tensor

from demo.models import OpenModel
from demo.session import View
from demo.speaking import Reply
from sparse_vlm.overlays import (
    covered_share,
    draw_glances,
    draw_heat,
    nearest_token,
    spread_over_rois,
    to_image_coordinates,
)

ALL = 0  # of the token's and the word's choice; 1 is the first


class Choice(NamedTuple):
    """What the visitor wants to see, numbers from 1.

    Attributes:
        image: of the conversation.
        step: sampling step.
        token: one token, or ALL.
        colour_by: "token": the chosen step alone; "step": all steps up to it, over each other.
        points: whether sampling points are drawn.
        word: of the answer, or ALL for their mean.
    """

    image: int
    step: int
    token: int
    colour_by: str
    points: bool
    word: int


def draw_look(view: View, choice: Choice) -> Image.Image:
    """Draw the RoIs on the image."""
    first = 0 if choice.colour_by == "step" else choice.step - 1
    steps = view.glances[first : choice.step]
    tokens = range(steps[0].rois.shape[1]) if choice.token == ALL else [choice.token - 1]
    image = view.pixels[choice.image - 1].numpy()
    return draw_glances(image, steps, choice.image - 1, tokens, choice.colour_by, choice.points)


def describe_look(view: View, choice: Choice) -> str:
    """A sentence on the share of the image in the drawn step's RoIs."""
    rois = view.glances[choice.step - 1].rois[choice.image - 1]
    whole = covered_share(rois)
    text = f"Step {choice.step} of {len(view.glances)}: {len(rois)} tokens cover {whole:.0%} of the image"
    if choice.token == ALL:
        return f"{text}."
    return f"{text}, token {choice.token} alone {covered_share(rois[choice.token - 1 : choice.token]):.0%}."


def draw_attention(view: View, choice: Choice) -> Image.Image:
    """What the answer, or one word of it, attended to, through the RoIs of the last step."""
    weights = _weights(view, choice)[choice.image - 1]
    heat = spread_over_rois(view.glances[-1].rois[choice.image - 1], weights)
    return draw_heat(view.pixels[choice.image - 1].numpy(), heat)


def describe_attention(view: View, choice: Choice) -> str:
    """A sentence on the share of attention that went to the image."""
    share = float(_weights(view, choice)[choice.image - 1].sum())
    who = "The answer" if choice.word == ALL else "This token"
    return f"{who} gave {share:.0%} of its attention to this image (mean over layers, heads and tokens)."


def token_at(view: View, choice: Choice, x: float, y: float) -> int:
    """The token, from 1, whose RoI is nearest to a pixel of the drawing."""
    place = to_image_coordinates(view.pixels[choice.image - 1].numpy(), x, y)
    return 1 + nearest_token(view.glances[choice.step - 1].rois[choice.image - 1], *place)


def numbers(models: Sequence[OpenModel], replies: Sequence[Reply], tokens: Sequence[int | None]) -> str:
    """A Markdown table of what the last answers cost.

    Args:
        models: all.
        replies: of the first ones of them, as far as there are.
        tokens: of each model, visual tokens of an image; None where a model does not say.
    """
    rows: dict[str, list[str]] = {name: [] for name in ROWS}
    for opened, reply, count in zip(models, replies, tokens, strict=False):
        prompt = reply.inputs["input_ids"].shape[1]
        prefill = reply.first - (reply.tower or 0)
        values = (
            "–" if count is None else str(count),
            str(prompt),
            _milliseconds(reply.tower),
            _milliseconds(prefill),
            _milliseconds(reply.per_token),
            str(len(reply.ids)),
            f"{opened.weight_bytes / 2**20:.0f} MiB",
        )
        for name, value in zip(ROWS, values, strict=True):
            rows[name].append(value)
    head = "| | " + " | ".join(opened.name for opened in models[: len(replies)]) + " |"
    lines = [head, "|---|" + "---:|" * len(replies)]
    lines += [f"| {name} | " + " | ".join(values) + " |" for name, values in rows.items()]
    return "\n".join(lines) + f"\n\nMemory of the whole process: {psutil.Process().memory_info().rss / 2**20:.0f} MiB."


ROWS = (
    "visual tokens of an image",
    "tokens of the prompt",
    "vision tower",
    "projector, prompt, first token",
    "each further token",
    "tokens of the answer",
    "weights",
)


def _milliseconds(seconds: float | None) -> str:
    return "–" if seconds is None else f"{1e3 * seconds:.1f} ms"


def _weights(view: View, choice: Choice) -> Tensor:
    return view.attention.mean(dim=0) if choice.word == ALL else view.attention[choice.word - 1]
