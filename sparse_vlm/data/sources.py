"""Unlabelled images for bootstrapping."""

from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from sparse_vlm.data.images import open_image
from sparse_vlm.encoder import Preprocessing
from sparse_vlm.encoder.preprocessing import INTERPOLATIONS
from sparse_vlm.errors import UserError


class ImageFolder(Dataset):
    """Every image file below a folder, in the order of the sorted paths. Items: {"pixel_values": float32[3, H, W]}.

    Args:
        folder: searched recursively for the file endings that PIL reads.
        transform: PIL image -> float32[3, H, W].

    Raises:
        UserError: the folder is missing or holds no image; a damaged file, when it is read.
    """

    def __init__(self, folder: str | Path, transform: Callable[[Image.Image], Tensor]) -> None:
        folder = Path(folder)
        if not folder.is_dir():
            raise UserError(f"There is no image folder {folder}.")
        endings = Image.registered_extensions()
        self.paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in endings)
        if not self.paths:
            raise UserError(f"The folder {folder} holds no image files.")
        self.transform = transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"pixel_values": self.transform(open_image(self.paths[index]))}


def augmentation(preprocessing: Preprocessing, min_area: float) -> v2.Compose:
    """Random resized crop and flip, then the weights' own normalisation: PIL image -> float32[3, crop, crop].

    Args:
        preprocessing: of the weights.
        min_area: smallest share of the picture's area that a crop keeps, in (0, 1].
    """
    size, interpolation = preprocessing.crop, INTERPOLATIONS[preprocessing.interpolation]
    return v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=(min_area, 1.0), interpolation=interpolation, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(preprocessing.mean, preprocessing.std),
        ]
    )
