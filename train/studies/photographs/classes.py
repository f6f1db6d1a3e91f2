"""Photographs in shards whose folders are named by WordNet ids, and the words for what they show."""

import random
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from sparse_vlm.data.images.labelled_sets import class_folder, image_members
from sparse_vlm.data.tar_shards import Member
from sparse_vlm.errors import UserError, unknown_choice

# imagenette's ten classes
THINGS = {
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}


class Photograph(NamedTuple):
    """A photograph in a shard.

    Attributes:
        name: its file, WORDNET_ID/NAME.jpg.
        thing: what it shows, e.g. "golf ball".
        member: where it is.
    """

    name: str
    thing: str
    member: Member


def with_article(thing: str) -> str:
    """Return "a tench", "an English springer"."""
    return f"{'an' if thing[0].lower() in 'aeiou' else 'a'} {thing}"


def read_photographs(folder: str | Path, shards: str) -> list[Photograph]:
    """List the photographs of shards, sorted by name.

    Args:
        folder: the folder that `shards` are relative to.
        shards: local tar files with WORDNET_ID/NAME.jpg, in webdataset's notation.

    Raises:
        UserError: a shard is missing or cannot be read, a folder is not one of `THINGS`, or two photographs share a
            name.
    """
    found: dict[str, Photograph] = {}
    for member in image_members(shards, Path(folder)):
        wordnet_id = class_folder(member)
        if wordnet_id not in THINGS:
            raise unknown_choice(f"WordNet id (the folder of {member})", wordnet_id, THINGS)
        name = f"{wordnet_id}/{PurePosixPath(member.name).name}"
        if name in found:
            raise UserError(f"The photograph {name} is in {shards} twice. Remove one of them.")
        found[name] = Photograph(name, THINGS[wordnet_id], member)
    return [found[name] for name in sorted(found)]


def draw(photographs: Sequence[Photograph], count: int, order: random.Random, option: str) -> list[Photograph]:
    """Draw photographs in turns over their classes, so that the numbers of two classes differ by at most one.

    Args:
        photographs: all of a split.
        count: how many to draw.
        order: random numbers.
        option: the option that `count` is the value of, for the error.

    Raises:
        UserError: a class has too few photographs.
    """
    groups: dict[str, list[Photograph]] = {}
    for photograph in photographs:
        groups.setdefault(photograph.thing, []).append(photograph)
    most = len(groups) * min(map(len, groups.values()))
    if not 1 <= count <= most:
        fewest = min(groups, key=lambda thing: len(groups[thing]))
        raise UserError(
            f"{option} must be between 1 and {most}, because there are {len(groups[fewest])} photographs of "
            f"{with_article(fewest)} and as many are drawn of each of {len(groups)} classes; got {count}."
        )
    shuffled = [order.sample(group, len(group)) for group in groups.values()]
    return [shuffled[number % len(shuffled)][number // len(shuffled)] for number in range(count)]
