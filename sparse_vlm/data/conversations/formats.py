"""The layouts of conversations: records -> names of images and videos, turns, and regions. Every key is checked.

| turns under                        | a turn                               | position of the images                   |
|------------------------------------|--------------------------------------|------------------------------------------|
| `conversations` (LLaVA)            | `{"from": "human", "value": text}`   | at each `<image>` of the text            |
| `messages` (TRL), `conversations`  | `{"role": "user", "content": text}`, | at each `<image>` of the text, or at     |
|                                    | or a list of parts as content        | each part of type "image"; else before   |
|                                    |                                      | the first question of `messages`         |
| `texts` (the_cauldron, FineVision) | `{"user": text, "assistant": text}`  | before the first question                |

`image` or `images` holds the name of an image or a list of names. `video` or `videos` holds those of videos, which
stand at each `<video>` of the text, at each part of type "video", or where images would stand. In a record with videos
and no image, `<image>` means `<video>`, as LLaVA-NeXT writes it. `regions` holds a box [x1, y1, x2, y2] for each
`<region>` of the text, [0, 1] from edge to edge of the image; a part of type "region" has a "box" of its own. Turns may
be the JSON text of such a list. A key with the value null counts as absent. Any other key is an error, because it might
hold something that a model should learn.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from sparse_vlm.encoder.rois import check_box
from sparse_vlm.errors import UserError, check_choice, error_context, unknown_choice
from sparse_vlm.vlm.language.control_tokens import IMAGE_TOKEN, REGION_TOKEN, VIDEO_TOKEN
from sparse_vlm.vlm.views import Box

Record = dict[str, Any]
Turn = tuple[str, str]  # (role name of chat templates, stripped text)

IMAGE_PLACEHOLDER, REGION_PLACEHOLDER, VIDEO_PLACEHOLDER = IMAGE_TOKEN, REGION_TOKEN, VIDEO_TOKEN
TURN_KEYS = ("conversations", "messages", "texts")
IMAGE_KEYS = ("image", "images")
VIDEO_KEYS = ("video", "videos")
REGION_KEY = "regions"
# Keys that describe a sample and are ignored: from LLaVA's own mixtures, OneVision, LLaVA-Video, Cambrian, M4, ….
NOTE_KEYS = (
    *("model", "source", "data_source", "dataset", "dataset_name", "category", "task", "task_name", "task_type"),
    *("metadata", "sample_id", "question_id", "image_id", "width", "height", "length", "license"),
    *("relevance_ratings", "visual_dependency_ratings", "image_correspondence_ratings", "formatting_ratings"),
    *("relevance_min", "visual_dependency_min", "image_correspondence_min", "formatting_min"),
    *("type", "domain", "split", "subset", "pair_id", "conversation_id", "uid", "idx", "index", "score", "num_turns"),
    *("video_id", "duration"),
    *("language", "lang", "image_size", "image_width", "image_height", "width_list", "height_list", "choice_list"),
)
LEARNED_KEYS = (*IMAGE_KEYS, *VIDEO_KEYS, REGION_KEY, *TURN_KEYS)
LLAVA_ROLES = {"human": "user", "gpt": "assistant", "system": "system"}
ROLES = {"user": "user", "assistant": "assistant", "system": "system"}
SAME_ROLE = {"user": "human", "assistant": "gpt", "human": "user", "gpt": "assistant"}


class _Parts(NamedTuple):
    """What the parts of a record's turns hold besides text.

    Attributes:
        images: for each part of type "image", the index or name of its image, or None.
        videos: the same of each part of type "video".
        boxes: for each part of type "region", its box.
    """

    images: list[Any]
    videos: list[Any]
    boxes: list[Any]


class Read(NamedTuple):
    """What a record holds.

    Attributes:
        images, videos: names, in the order of their placeholders.
        turns: its turns.
        boxes: the boxes of its regions.
    """

    images: list[str]
    videos: list[str]
    turns: list[Turn]
    boxes: list[Box]


def check_keys(keys: Iterable[str], place: str) -> None:
    """Check the keys of a record or the columns of a table. At most one key may hold turns, one images, one videos.

    Args:
        keys: of the record or table.
        place: names the record or table in the error.
    """
    keys = list(keys)
    for key in keys:
        if key != "id" and key not in LEARNED_KEYS + NOTE_KEYS:
            raise UserError(
                f"{place}: {unknown_choice('key', key, LEARNED_KEYS)} Unknown keys are not ignored: remove it."
            )
    for several in (TURN_KEYS, IMAGE_KEYS, VIDEO_KEYS):
        given = [key for key in several if key in keys]
        if len(given) > 1:
            raise UserError(f"{place} has both {given[0]!r} and {given[1]!r}. Remove one of them.")


def read_record(record: Mapping[str, Any], place: str) -> Read:
    """Return what a record holds.

    Args:
        record: in one of the layouts above.
        place: names the record in errors.
    """
    given = {key: value for key, value in record.items() if value is not None}
    check_keys(given, place)
    images, videos = (_names(given, keys, place) for keys in (IMAGE_KEYS, VIDEO_KEYS))
    key = next((key for key in TURN_KEYS if key in given), TURN_KEYS[0])
    listed = _list_of_turns(given.get(key), key, place)
    parts = _Parts([], [], [])
    if key == "texts":
        turns = [turn for item in listed for turn in _exchange(item, place)]
    else:
        turns = [_turn(item, parts, place) for item in listed]
    if parts.images or parts.videos:
        images = _in_order_of_parts(images, parts.images, "image", place)
        videos = _in_order_of_parts(videos, parts.videos, "video", place)
    else:
        turns = _with_placeholders(turns, images, videos, before=key != "conversations")
    listed_boxes = given.get(REGION_KEY, [])
    if parts.boxes and listed_boxes:
        raise UserError(f'{place}: its parts have the boxes of its regions, so remove "{REGION_KEY}".')
    return Read(images, videos, turns, _boxes(parts.boxes or listed_boxes, place))


def _with_placeholders(turns: list[Turn], images: list[str], videos: list[str], *, before: bool) -> list[Turn]:
    """Write LLaVA-NeXT's `<image>` of a video as `<video>`, and put missing placeholders before the first question.

    Args:
        turns: of a record.
        images, videos: names.
        before: whether placeholders may be missing.
    """
    text = "".join(words for _, words in turns)
    if videos and not images and VIDEO_PLACEHOLDER not in text:
        turns = [(role, words.replace(IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER)) for role, words in turns]
        text = text.replace(IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER)
    first = next((i for i, (role, _) in enumerate(turns) if role == "user"), None)
    if before and first is not None:
        kinds = ((IMAGE_PLACEHOLDER, images), (VIDEO_PLACEHOLDER, videos))
        missing = "".join(f"{placeholder}\n" * len(names) for placeholder, names in kinds if placeholder not in text)
        turns[first] = ("user", missing + turns[first][1])
    return turns


def _names(record: Mapping[str, Any], keys: Sequence[str], place: str) -> list[str]:
    value: Any = next((record[key] for key in keys if key in record), [])
    names = value if isinstance(value, list) else [value]
    if not all(isinstance(item, str) and item for item in names):
        raise UserError(f'{place}: "{keys[0]}" must be a relative path or a list of them, not {value!r:.200}.')
    return names


def _boxes(value: Any, place: str) -> list[Box]:
    """Check the boxes of regions."""
    if not isinstance(value, list) or not all(isinstance(box, list) for box in value):
        raise UserError(f'{place}: "{REGION_KEY}" must be a list of boxes [x1, y1, x2, y2], not {value!r:.200}.')
    with error_context(place):
        for box in value:
            check_box(box)
    return [(left, top, right, bottom) for left, top, right, bottom in value]


def _list_of_turns(value: Any, key: str, place: str) -> list[dict[str, Any]]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise UserError(f'{place}: "{key}" is a string that is not valid JSON ({error}).') from None
    if not isinstance(value, list) or not value:
        raise UserError(f'{place} has no "{key}" list.')
    if not all(isinstance(item, dict) for item in value):
        raise UserError(f'{place}: each item of "{key}" must be an object.')
    return [{name: field for name, field in item.items() if field is not None} for item in value]


def _exchange(item: dict[str, Any], place: str) -> list[Turn]:
    """Return the question and the answer of an item of `texts`."""
    _check_fields(item, ("user", "assistant", "source"), place)
    return [(role, _text(item.get(role), role, place)) for role in ("user", "assistant")]


def _turn(item: dict[str, Any], parts: _Parts, place: str) -> Turn:
    """Return a turn of LLaVA's form or of a chat template's, and append its images and boxes to `parts`."""
    llava = "from" in item or "value" in item
    role_key, text_key, roles = ("from", "value", LLAVA_ROLES) if llava else ("role", "content", ROLES)
    _check_fields(item, (role_key, text_key), place)
    role = item.get(role_key)
    if not isinstance(role, str) or role not in roles:
        raise UserError(f"{place}: {unknown_choice('role', str(role), roles, meant=SAME_ROLE.get(str(role)))}")
    content = item.get(text_key)
    if isinstance(content, list) and not llava:
        content = _joined(content, parts, place)
    return roles[role], _text(content, role, place)


def _joined(content: list[Any], parts: _Parts, place: str) -> str:
    """Return the text of a list of parts, with placeholders where chat templates put them (PARTS_TO_TEXT)."""
    images, words, mixed, groups, before = "", "", "", 0, None
    for part in content:
        given = {name: field for name, field in part.items() if field is not None} if isinstance(part, dict) else {}
        kind = given.get("type")
        if kind in ("image", "video"):
            names = ("index", kind, "path")
            _check_fields(given, ("type", *names), place)
            named = next((given[name] for name in names if name in given), None)
            (parts.images if kind == "image" else parts.videos).append(named)
            text = f"{IMAGE_PLACEHOLDER if kind == 'image' else VIDEO_PLACEHOLDER}\n"
            images, groups = images + text, groups + (before not in ("image", "video"))
        elif kind == "text":
            _check_fields(given, ("type", "index", "text"), place)
            text = _text(given.get("text"), "text part", place, strip=False)
            words += text
        elif kind == "region":
            _check_fields(given, ("type", "box"), place)
            if "box" not in given:
                raise UserError(f'{place}: a part of type "region" has no "box" [x1, y1, x2, y2].')
            parts.boxes.append(given["box"])
            text = REGION_PLACEHOLDER
            words += text
        else:
            kinds = ("image", "video", "text", "region")
            raise UserError(f"{place}: {unknown_choice('type of a part', str(kind), kinds)}")
        mixed, before = mixed + text, kind
    return mixed if groups > 1 else images + words


def _in_order_of_parts(images: list[str], parts: list[Any], kind: str, place: str) -> list[str]:
    """Return the names of the images, or of the videos, in the order of the parts, each of which holds an index, a name
    or nothing."""
    if not parts:
        return images
    if not images and all(isinstance(part, str) for part in parts):
        return parts
    if all(isinstance(part, int) for part in parts):
        if sorted(set(parts)) != list(range(len(images))):
            raise UserError(f"{place} has {len(images)} {kind}s, but its parts have the indices {parts}.")
        return [images[part] for part in parts]
    for part in parts:
        if part is not None and not isinstance(part, int | str):
            raise UserError(f"{place}: a part of type {kind!r} holds a {type(part).__name__}: give the {kind}'s name.")
    if any(part is not None for part in parts):
        raise UserError(f"{place}: its {kind}s are named in its parts ({parts[0]!r:.80} …) and elsewhere. Choose one.")
    return images


def _text(value: Any, role: str, place: str, *, strip: bool = True) -> str:
    if value is not None and not isinstance(value, str):
        raise UserError(f"{place}: a {role} turn holds {value!r:.80}, which is not a string. Put it in quotes.")
    if value is None or (strip and not value.strip()):
        raise UserError(f"{place}: a {role} turn has no text.")
    return value.strip() if strip else value


def _check_fields(item: dict[str, Any], known: tuple[str, ...], place: str) -> None:
    with error_context(place):
        for field in item:
            check_choice("field of a turn", field, known)
