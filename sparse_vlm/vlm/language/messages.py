"""Messages as chat templates take them: control tokens in their text escaped, regions and videos as placeholders."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sparse_vlm.errors import UserError, unknown_choice
from sparse_vlm.vlm.language.control_tokens import IMAGE_TOKEN, REGION_TOKEN, VIDEO_TOKEN
from sparse_vlm.vlm.language.literal_text import escape, escape_parts
from sparse_vlm.vlm.videos.placeholders import video_as_text, visual_parts_first

PARTS = ("text", "image", "image_url", "region", "video")  # types of the parts of a message


def escape_messages(turns: Any, tokens: Collection[str]) -> list[dict[str, Any]]:
    """Escape the control tokens in the text of a conversation's turns; its regions and videos become placeholders.

    Args:
        turns: messages, or an object that has them as `messages`.
        tokens: the control tokens.

    Raises:
        UserError: a part has another type, or names several videos.
    """
    return [
        {**turn, "content": _escape_content(turn["content"], tokens, turn.get("role"))} if "content" in turn else turn
        for turn in getattr(turns, "messages", turns)
    ]


def _escape_content(content: Any, tokens: Collection[str], role: Any) -> Any:
    placeholders = (IMAGE_TOKEN, REGION_TOKEN, VIDEO_TOKEN)
    tokens = [*tokens, REGION_TOKEN, VIDEO_TOKEN]
    if isinstance(content, str):
        return escape(content, [token for token in tokens if token not in placeholders or role != "user"])
    if not isinstance(content, list | tuple):
        return content
    content = visual_parts_first(content)
    texts = [
        place for place, part in enumerate(content) if isinstance(part, dict) and isinstance(part.get("text"), str)
    ]
    escaped = dict(zip(texts, escape_parts([content[place]["text"] for place in texts], tokens), strict=True))
    return [
        {**part, "text": escaped[place]} if place in escaped else _placeholder_as_text(content, place)
        for place, part in enumerate(content)
    ]


def _placeholder_as_text(parts: Sequence[Any], place: int) -> Any:
    """Return a part, or the placeholder of one of type "region" or "video", which chat templates do not know.

    Text after the images and regions with which a turn begins starts on a line of its own, as it does after images.
    """
    kinds = [part.get("type") if isinstance(part, dict) else None for part in parts[: place + 2]]
    if kinds[place] == "video":
        return video_as_text(parts[place])
    if kinds[place] != "region":
        if isinstance(parts[place], dict) and kinds[place] not in PARTS:  # templates would fail without a reason
            raise unknown_choice("type of a part of a message", str(kinds[place]), PARTS)
        return parts[place]
    begins = set(kinds[:place]) <= {"image", "region"}
    return {"type": "text", "text": REGION_TOKEN + "\n" * (begins and kinds[place + 1 :] == ["text"])}


def boxes_of(conversation: Any) -> list[Sequence[float]]:
    """Return the boxes of the parts of type "region" of a conversation, or of several, in order.

    Raises:
        UserError: such a part has no box, or it stands before the images of its turn.
    """
    boxes = []
    for turn in getattr(conversation, "messages", conversation):
        if not isinstance(turn, dict):
            boxes += boxes_of(turn)
            continue
        content = turn.get("content")
        parts = [part for part in content if isinstance(part, dict)] if isinstance(content, list | tuple) else []
        boxes += [_box(part) for part in parts if part.get("type") == "region"]
        kinds = [part["type"] for part in parts if part.get("type") in ("image", "region")]
        if kinds[:1] == ["region"] and "image" in kinds:  # templates move the images of a turn before its text
            raise UserError("A region is part of the image before it, but one comes before the images of its message.")
    return boxes


def _box(part: Mapping[str, Any]) -> Sequence[float]:
    if part.get("box") is None:
        raise UserError('A part of type "region" needs its box: {"type": "region", "box": [x1, y1, x2, y2]}.')
    return part["box"]
