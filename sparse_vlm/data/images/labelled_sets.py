"""Images with one class each, from class folders or webdataset shards."""

from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from sparse_vlm.data.images.labels import LabelledImages, read_class_folders
from sparse_vlm.data.images.sets import ImageSubset, IndexedImages, evenly_spaced
from sparse_vlm.data.specs import parse_spec
from sparse_vlm.data.tar_shards import Member, local_shards, members_in_place
from sparse_vlm.errors import UserError
from sparse_vlm.image_files import decode_image, readable_suffixes


class LabelledSet(NamedTuple):
    """Images and their classes.

    Attributes:
        images: N images.
        values: int64[N] class indices.
        classes: names.
        files: N files, or their places inside shards.
    """

    images: IndexedImages
    values: Tensor
    classes: tuple[str, ...]
    files: Sequence[Path | Member]

    def spread(self, count: int) -> "LabelledSet":
        """Return `count` of the images, evenly spaced, with all classes."""
        indices = evenly_spaced(self.images, count)
        files = [self.files[index] for index in indices]
        return LabelledSet(ImageSubset(self.images, indices), self.values[indices], self.classes, files)


class MemberImages(IndexedImages):
    """Images inside tar files, which are read in place.

    Args:
        members: files inside uncompressed tar files.
        transform, seed, on_bad_image: see `SeededImages`.
    """

    def __init__(
        self,
        members: Sequence[Member],
        transform: Callable[[Image.Image], Tensor],
        *,
        seed: int = 0,
        on_bad_image: str = "error",
    ) -> None:
        super().__init__(len(members), transform, seed, on_bad_image)
        self.members = members

    def read(self, index: int) -> Image.Image:
        member = self.members[index]
        return decode_image(member.read(), str(member))


def open_labelled_set(spec: str, transform: Callable[[Image.Image], Tensor], option: str = "--images") -> LabelledSet:
    """Open images with one class each, named by their folder.

    Args:
        spec: a folder with one subfolder of images per class, or "wds:SHARDS": local uncompressed tar files with
            CLASS/NAME.jpg, in webdataset's notation.
        transform: RGB image -> float32[3, H, W].
        option: the option that `spec` is the value of, for errors.

    Raises:
        UserError: files are missing or malformed, or there are fewer than two classes.
    """
    prefix, name = parse_spec(spec, ("wds",), option=option)
    if prefix is None:
        labels = read_class_folders(name)
        return LabelledSet(LabelledImages(labels, transform), labels.values, labels.classes, labels.paths)
    members = image_members(name)
    folders = [class_folder(member) for member in members]
    classes = tuple(sorted(set(folders)))
    if len(classes) < 2:
        raise UserError(f"All images of {spec} lie in the folder {classes[0]}: there must be one folder per class.")
    index_of = {each: index for index, each in enumerate(classes)}
    values = torch.tensor([index_of[each] for each in folders])
    return LabelledSet(MemberImages(members, transform), values, classes, members)


def image_members(shards: str, base: Path = Path()) -> list[Member]:
    """Return the images of all shards in their order; other files, such as captions, are left out.

    Args:
        shards: paths in webdataset's notation.
        base: the folder that paths are relative to.
    """
    members: list[Member] = []
    for shard in local_shards(shards, "labelled images are read by index", base):
        found: dict[str, Member] = {}
        for member in members_in_place(shard):
            if PurePosixPath(member.name).suffix.lower() not in readable_suffixes():
                continue
            if found.setdefault(member.name, member) != member:
                raise UserError(f"The shard {shard} holds {member.name} twice. Remove one of them.")
        if not found:
            raise UserError(f"The shard {shard} holds no images. Pack them as CLASS/NAME.jpg.")
        members += found.values()
    return members


def class_folder(member: Member) -> str:
    """Return the name of the folder that an image lies in, which is its class."""
    folder = PurePosixPath(member.name).parent.name
    if not folder:
        raise UserError(f"The image {member} lies in no folder, which would be its class. Pack it as CLASS/NAME.jpg.")
    return folder
