"""Streams for tests."""

from collections.abc import Iterator

from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from sparse_vlm.data.images.streams import Encoded, ImageStream
from sparse_vlm.errors import UserError


class NamedShards:
    """Shards in memory: a list of encoded images per shard."""

    def __init__(self, shards: list[list[bytes]]) -> None:
        self.shards = shards
        self.names = [f"shard {index}" for index in range(len(shards))]

    def read(self, index: int) -> Iterator[Encoded | UserError]:
        return (Encoded(f"{index}/{position}", data) for position, data in enumerate(self.shards[index]))


def first_pixels(image: Image.Image) -> Tensor:
    """Return the first two columns of an image, which identify it."""
    return v2.functional.pil_to_tensor(image)[:, 0, :2]


def seen(stream: ImageStream, epoch: int = 0, workers: int = 0) -> list[bytes]:
    """Return the pixels of each image of an epoch."""
    stream.set_epoch(epoch)
    loader = DataLoader(stream, batch_size=stream.batch_size, num_workers=workers)
    return [item.numpy().tobytes() for batch in loader for item in batch["pixel_values"]]
