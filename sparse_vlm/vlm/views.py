"""Views: which tokens of which image replace each placeholder of a prompt. One tensor holds those of a batch."""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparse_vlm.encoder.rois import WHOLE_IMAGE, check_box
from sparse_vlm.errors import UserError
from sparse_vlm.vlm.language.control_tokens import IMAGE_TOKEN, REGION_TOKEN, VIDEO_TOKEN

Box = tuple[float, float, float, float]
# Boxes are integers in the tensor, so that `inputs.to(torch.bfloat16)` leaves them alone.
UNITS = 2**16
MOST_TOKENS = 2**17  # of an image; more are a slip, and their placeholders would fill the memory
PLACEHOLDER = re.compile(f"{IMAGE_TOKEN}|{REGION_TOKEN}|{VIDEO_TOKEN}")


class View(NamedTuple):
    """The visual tokens of one placeholder, `<image>` or `<region>`, or of one frame of a `<video>`.

    Attributes:
        image: index of the image among the images of the sample or the batch. Frames of videos follow all images.
        tokens: number of tokens that the language model receives, with CLS if the model keeps it.
        box: where the tokens start, (x1, y1, x2, y2) in the coordinates of the image that the encoder receives.
    """

    image: int
    tokens: int
    box: Box = WHOLE_IMAGE


def pack_views(views: Sequence[View]) -> Tensor:
    """Views of V placeholders -> int64[V, 6]: image, tokens, and the box in units of 1/65536 of the image.

    Raises:
        UserError: a view has no token, or its box is empty or leaves the image.
    """
    rows = []
    for view in views:
        check_count(view.tokens)
        check_box(view.box)
        rows.append([view.image, view.tokens, *(round(side * UNITS) for side in view.box)])
    return torch.tensor(rows, dtype=torch.long).reshape(-1, 6)


def pack_by_image(views: Sequence[View]) -> Tensor:
    """Views of I images, in their order and without frames -> int64[I, R, 5] for at most R views of an image.

    A row is the number of tokens and the box as in `pack_views`; an image with fewer views has zeros after them. The
    first dimension is that of `pixel_values`, so that servers can join images of several requests.
    """
    flat = pack_views(views)
    counts = flat[:, 0].bincount().tolist() if views else []
    packed = flat.new_zeros(len(counts), max(counts, default=0), 5)
    for image, rows in enumerate(flat[:, 1:].split(counts) if views else ()):
        packed[image, : len(rows)] = rows
    return packed


def unpack_views(packed: Tensor) -> list[View]:
    """Inverse of `pack_views` and of `pack_by_image`."""
    if packed.ndim == 3:
        images = torch.arange(len(packed), device=packed.device)[:, None, None].expand(-1, packed.shape[1], 1)
        rows = torch.cat([images, packed], dim=-1).flatten(0, 1)
        packed = rows[rows[:, 1] > 0]
    return [
        View(image, tokens, (left / UNITS, top / UNITS, right / UNITS, bottom / UNITS))
        for image, tokens, left, top, right, bottom in packed.tolist()
    ]


def batches_of_views(views: Sequence[View], images: int, count: int) -> Iterator[tuple[int, dict[int, View]]]:
    """Divide views among batches of `count` images; a batch without views is left out.

    Yields:
        The batch's first image, and its views by their place in `views`, with images counted from the first.
    """
    for start in range(0, images, count):
        here = {
            place: view._replace(image=view.image - start)
            for place, view in enumerate(views)
            if start <= view.image < start + count
        }
        if here:
            yield start, here


def check_frames(videos: Sequence[int] | Tensor | None, frames: int) -> None:
    """Raise UserError unless `videos`, the number of frames of each video, fits the number of all frames."""
    if videos is not None and sum(map(int, videos)) != frames:
        raise UserError(f"video_frames names {sum(map(int, videos))} frames, but pixel_values_videos has {frames}.")


def check_count(tokens: int) -> None:
    """Raise UserError unless an image or a region can have this number of tokens in some model."""
    if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1:
        raise UserError(f"An image or a region needs a whole number of visual tokens, at least 1, got {tokens!r}.")
    if tokens > MOST_TOKENS:
        raise UserError(f"An image can have at most {MOST_TOKENS} visual tokens, got {tokens}.")


def check_requested(counts: Sequence[int], fewest: int, fixed: str | None = None) -> None:
    """Check that a model can have the requested numbers of tokens.

    Args:
        counts: number of visual tokens of each image.
        fewest: the smallest number.
        fixed: why the vision tower has one number only; None: it takes any.

    Raises:
        UserError: it cannot.
    """
    if fixed:
        raise UserError(fixed)
    if counts and min(counts) < fewest:
        raise UserError(f"This model keeps CLS, so an image needs at least {fewest} visual tokens, got {min(counts)}.")


def tokens_per_image(visual_tokens: int | Sequence[int] | None, images: int, default: int) -> list[int]:
    """Return the number of visual tokens of each image.

    Args:
        visual_tokens: one number for all images, one number per image, or None for `default`.
        images: number of images.
        default: the model's own number.

    Raises:
        UserError: a number below 1, or more or fewer numbers than images.
    """
    asked: Any = default if visual_tokens is None else visual_tokens
    counts = list(asked) if isinstance(asked, Sequence) else [asked] * images
    if len(counts) != images:
        raise UserError(f"There are {images} images but {len(counts)} numbers of visual tokens: give one per image.")
    for count in counts:
        check_count(count)
    return counts


def views_of_texts(
    texts: Sequence[str],
    counts: Sequence[int],
    boxes: Sequence[Sequence[float]],
    region_tokens: int,
    model_box: Callable[[int, Sequence[float]], Box],
    videos: Sequence[int] = (),
    frame_tokens: int = 0,
) -> list[View]:
    """Return the view of each placeholder of the texts, in order. A region belongs to the image before it.

    Args:
        texts: with `<image>`, `<region>` and `<video>`.
        counts: number of visual tokens of each image.
        boxes: the box of each `<region>`, in the coordinates of its image.
        region_tokens: number of visual tokens of each region.
        model_box: converts a box in the image of an index to the coordinates of what the encoder receives.
        videos: number of frames of each `<video>`, which has a view for each frame.
        frame_tokens: number of visual tokens of each frame.

    Raises:
        UserError: the placeholders do not fit the images, boxes and videos.
    """
    check_videos(texts, len(videos))
    all_placeholders = [PLACEHOLDER.findall(text) for text in texts]
    images, regions = (sum(each.count(token) for each in all_placeholders) for token in (IMAGE_TOKEN, REGION_TOKEN))
    if images != len(counts):
        raise UserError(f"The text has {images} {IMAGE_TOKEN} but there are {len(counts)} images: each needs one.")
    if regions != len(boxes):
        raise UserError(
            f"The text has {regions} {REGION_TOKEN} but there are {len(boxes)} boxes: each {REGION_TOKEN} needs a box "
            "(x1, y1, x2, y2)."
        )
    views: list[View] = []
    image, remaining = -1, iter(boxes)
    frames = iter(range(len(counts), len(counts) + sum(videos)))
    lengths = iter(videos)
    for placeholders in all_placeholders:
        before = ""
        for placeholder in placeholders:
            if placeholder == IMAGE_TOKEN:
                image += 1
                views.append(View(image, counts[image]))
            elif placeholder == VIDEO_TOKEN:
                views += [View(next(frames), frame_tokens) for _ in range(next(lengths))]
            elif before in ("", VIDEO_TOKEN):
                found = f"comes after a {VIDEO_TOKEN}" if before else f"its text has no {IMAGE_TOKEN} before it"
                raise UserError(f"A {REGION_TOKEN} is part of the image before it, but {found}.")
            else:
                views.append(View(image, region_tokens, model_box(image, next(remaining))))
            before = placeholder
    return views


def frames_as_text(frame: str, count: int, times: Sequence[float] | None = None) -> str:
    """Return what replaces a `<video>`.

    Args:
        frame: the text of one frame.
        count: number of frames.
        times: the time of each frame in seconds, to be written before it; None: no times.
    """
    if times is None:
        return frame * count
    return "\n".join(f"{time:.1f}s: {frame}" for time in times)


def check_videos(texts: Sequence[str], videos: int) -> None:
    """Raise UserError unless the texts have one `<video>` per video."""
    wanted = sum(text.count(VIDEO_TOKEN) for text in texts)
    if wanted != videos:
        raise UserError(f"The text has {wanted} {VIDEO_TOKEN}, but the number of videos is {videos}: each needs one.")


def check_counts(placeholders: Sequence[int], given: Sequence[int], token: str = IMAGE_TOKEN) -> None:
    """Raise UserError unless each text has as many `token` as its list has images or videos.

    Args:
        placeholders: number of placeholders in each text.
        given: length of each list.
        token: the placeholder.
    """
    kind = f"{token.strip('<>')}s"
    if len(placeholders) != len(given):
        raise UserError(
            f"There are {len(placeholders)} texts and {len(given)} lists of {kind}: each text needs its own list."
        )
    for number, (wanted, found) in enumerate(zip(placeholders, given, strict=True), start=1):
        if wanted != found:
            raise UserError(f"Text {number} has {wanted} {token}, but its list has {found} {kind}.")


def parse_box(text: str) -> Box:
    """Parse a box that was typed as "x1,y1,x2,y2".

    Raises:
        UserError: it is not a box inside the image.
    """
    try:
        box = [float(side) for side in text.split(",")]
    except ValueError:
        raise UserError(f"A region is a box x1,y1,x2,y2 with [0, 1] from edge to edge, got {text!r}.") from None
    check_box(box)
    left, top, right, bottom = box
    return left, top, right, bottom


def flat_boxes(regions: Sequence[Any] | None) -> list[Sequence[float]]:
    """Return the boxes of `regions`: a list of boxes, or a list of such lists.

    Raises:
        UserError: one of them is not a box.
    """
    boxes: list[Sequence[float]] = []
    for region in regions or []:
        if isinstance(region, Sequence) and not isinstance(region, str) and region and _is_box(region[0]):
            boxes += region
        elif _is_box(region):
            boxes.append(region)
        elif not isinstance(region, list | tuple) or region:  # a text without regions has an empty list
            raise UserError(f"A region is a box (x1, y1, x2, y2), got {region!r}.")
    for box in boxes:
        check_box(box)
    return boxes


def _is_box(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(side, int | float) for side in value) and bool(value)
