"""What the next answer looks at more closely: the box that the visitor draws, or where the last answer attended."""

from collections.abc import Sequence
from typing import Any

import gradio as gr
from PIL import Image

from demo.boxes import Place, attended_box, box_of_corners, check_place, draw_box, draw_corner
from demo.interface import Page, warn
from demo.models import OpenModel
from demo.session import Drawing, Region, Regions, SentImage, Session
from demo.uploads import copy_of_side, receive, save_copy
from sparse_vlm.errors import UserError
from sparse_vlm.vlm.views import Box

CHAT_SIDE = 256  # pixels of the longer side of an image with a box in the chat


class BoxEvents:
    """The handlers of the area in which a visitor draws a box; `max_megapixels` is the largest image."""

    def __init__(self, page: Page, max_megapixels: float) -> None:
        self.page, self.max_megapixels = page, max_megapixels

    @property
    def parts(self) -> list[Any]:
        """The components of `area`."""
        return [self.page.box_area, self.page.box, self.page.box_text]

    def area(self, session: Session) -> dict[Any, Any]:
        """Show the drawing, or hide the area without one."""
        page, drawing = self.page, session.drawing
        if drawing is None:
            return {page.box_area: gr.update(visible=False), page.box: None, page.box_text: ""}
        return {
            page.box_area: gr.update(visible=True),
            page.box: show_drawing(drawing),
            page.box_text: describe_drawing(drawing),
        }

    def draw(self, message: dict[str, Any], session: Session) -> dict[Any, Any]:
        """Show the last image of the question, or else of the conversation, to draw a box on it."""
        try:
            attached = receive(message["files"][-1], self.max_megapixels) if message["files"] else None
            begin_drawing(session, attached)
        except UserError as error:
            warn(error)
        return self.area(session)

    def choose_corner(self, place: gr.SelectData, session: Session) -> dict[Any, Any]:
        """Take a click on the image as a corner of the box; gradio passes `place` first."""
        if session.drawing is not None:
            try:
                x, y = place.index
                add_corner(session.drawing, (x, y))
            except UserError as error:
                warn(error)
        return self.area(session)

    def remove(self, session: Session) -> dict[Any, Any]:
        """Delete the drawing."""
        session.drawing = None
        return self.area(session)


def begin_drawing(session: Session, attached: SentImage | None) -> None:
    """Begin a box on the image attached to the question, or else on the last image of the conversation.

    Raises:
        UserError: neither the question nor the conversation has an image.
    """
    images = [*session.images(), *([] if attached is None else [attached])]
    if not images:
        raise UserError("There is no image to draw on: attach one to the question first.")
    session.drawing = Drawing(images[-1], copy_of_side(images[-1].decode()))


def add_corner(drawing: Drawing, place: Place) -> None:
    """Add a corner of the box, in pixels of the shown copy; after the second one, the next begins a new box.

    Raises:
        UserError: the corner lies outside the image, or the box has no area.
    """
    check_place(place, drawing.shown.size)
    if drawing.corner is None:
        drawing.corner, drawing.box = place, None
        return
    drawing.box = box_of_corners(drawing.corner, place, drawing.shown.size)
    drawing.corner = None


def show_drawing(drawing: Drawing) -> Image.Image:
    """Return the image with the box so far."""
    if drawing.box is not None:
        return draw_box(drawing.shown, drawing.box)
    return drawing.shown if drawing.corner is None else draw_corner(drawing.shown, drawing.corner)


def describe_drawing(drawing: Drawing) -> str:
    """Write what the visitor can do next."""
    if drawing.box is not None:
        left, top, right, bottom = drawing.box
        return (
            f"The next question is about this box: {left:.0%} to {right:.0%} from the left, {top:.0%} to {bottom:.0%} "
            "from the top. Click again to draw another one."
        )
    if drawing.corner is not None:
        return "Click the opposite corner of the box."
    return "Click two opposite corners of a box. The next question is about it."


def drawn_regions(models: Sequence[OpenModel], session: Session, attached: Sequence[SentImage]) -> Regions | None:
    """Return the box that was drawn for a question; None without a drawing.

    Raises:
        UserError: the box is not finished, or was drawn on another image than the last one of the question.
    """
    drawing = session.drawing
    if drawing is None or (drawing.box is None and drawing.corner is None):
        return None
    if drawing.box is None:
        raise UserError("The box has one corner only: click the opposite corner, or remove the box.")
    last = [*session.images(), *attached][-1:]
    if not last or last[0].data != drawing.image.data:
        now = f"the last image is now {last[0].name}" if last else "it is no longer attached"
        raise UserError(f"The box was drawn on {drawing.image.name}, but {now}: draw it again, or remove the box.")
    region = _region(drawing.box, drawing.image)
    notes = [f"Asked without the box. {opened.fixed}" if opened.fixed else "" for opened in models]
    return Regions([None if opened.fixed else region for opened in models], notes)


def attended_regions(models: Sequence[OpenModel], session: Session) -> Regions:
    """Return, for each model, the box in the last image to which its last answer attended most (`attended_box`).

    Raises:
        UserError: no model has an answer with an image, or none takes a region.
    """
    found: list[Region | None] = []
    notes = []
    for k, opened in enumerate(models):
        box = None if opened.fixed else _attended(opened, session, k)
        if box is None:
            reason = opened.fixed or "Its answer was not finished."
            found.append(None)
            notes.append(f"Asked again without a box. {reason}")
            continue
        found.append(_region(box, session.images()[-1]))
        notes.append("Looked again, more closely inside the box.")
    if not any(found):
        reasons = [opened.fixed for opened in models]
        if all(reasons):
            raise UserError(f"The model cannot look again. {reasons[0]}")
        raise UserError("There is nothing to look at again: ask about an image first.")
    return Regions(found, notes)


def _region(box: Box, image: SentImage) -> Region:
    return Region(box, save_copy(draw_box(copy_of_side(image.decode(), CHAT_SIDE), box)))


def _attended(opened: OpenModel, session: Session, model: int) -> Box | None:
    """Return the box in coordinates of the whole last image; None if it is unknown what the model saw."""
    seen = session.seen_by(model)
    if seen is None:
        return None
    image = seen.images[-1]
    box = attended_box(image.steps[-1].rois[0], image.attention.mean(dim=0))
    return opened.processor.image_processor.image_box(box, session.images()[-1].decode().size)
