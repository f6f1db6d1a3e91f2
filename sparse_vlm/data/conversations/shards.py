"""Conversations and their images in webdataset's tar files."""

import json
import re
from pathlib import Path

from sparse_vlm.data.conversations.formats import IMAGE_KEYS, Record
from sparse_vlm.data.conversations.images import Images, file_stamp
from sparse_vlm.data.tar_shards import Member, local_shards, members_in_place
from sparse_vlm.errors import UserError
from sparse_vlm.image_files import readable_suffixes


class ShardImages(Images):
    """Images inside tar files, which are read in place."""

    def __init__(self) -> None:
        self.members: dict[str, Member] = {}

    def add(self, member: Member) -> str:
        """Add an image and return its name."""
        self.members[str(member)] = member
        return str(member)

    def stamp(self, name: str) -> str:
        member = self.members[name]
        return f"{file_stamp(member.shard)} {member.offset} {member.size}"

    def read(self, name: str) -> bytes:
        return self.members[name].read()


def read_shards(spec: str, base: Path = Path()) -> tuple[list[Record], ShardImages]:
    """Read the samples of local tar files. A sample is KEY.json and its images: KEY.jpg, or KEY.0.jpg, KEY.1.jpg, …

    Args:
        spec: paths in webdataset's notation.
        base: the folder that paths are relative to.
    """
    records: list[Record] = []
    images = ShardImages()
    for shard in local_shards(spec, "conversations are read by index", base):
        for key, files in _samples(shard).items():
            suffixes = [suffix for suffix in files if Path(f"x.{suffix}").suffix in readable_suffixes()]
            suffixes.sort(key=_numeric_order)
            record = _record(shard, key, files)
            record = {"id": key} | {name: value for name, value in record.items() if name not in IMAGE_KEYS}
            records.append(record | {"image": [images.add(files[suffix]) for suffix in suffixes]})
    if not records:
        raise UserError(f"There are no samples in the shards {spec}.")
    return records, images


def _samples(shard: Path) -> dict[str, dict[str, Member]]:
    """Return key -> suffix -> file of a tar file, without hidden files."""
    from webdataset.tariterators import base_plus_ext

    samples: dict[str, dict[str, Member]] = {}
    for member in members_in_place(shard):
        name = member.name.removeprefix("./")
        key, suffix = base_plus_ext(name)
        if key is None:
            raise UserError(
                f"The shard {shard} holds {name}, which has no suffix. Name its files KEY.json, KEY.jpg, …."
            )
        if member != samples.setdefault(key, {}).setdefault(suffix.lower(), member):
            raise UserError(f"The shard {shard} holds {member.name} twice. Give each sample a key of its own.")
    return samples


def _numeric_order(suffix: str) -> list[tuple[int, str]]:
    """Return a sort key that puts "2.jpg" before "10.jpg"."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", suffix)]


def _record(shard: Path, key: str, files: dict[str, Member]) -> Record:
    if "json" not in files:
        raise UserError(
            f"The sample {key} of {shard} has no {key}.json; the suffixes of its files: {', '.join(files)}."
        )
    try:
        record = json.loads(files["json"].read())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{key}.json of {shard} is not valid JSON: {error}.") from None
    if not isinstance(record, dict):
        raise UserError(f"{key}.json of {shard} must hold a LLaVA sample (an object).")
    return record
