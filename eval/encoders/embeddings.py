"""What encoders make of sets of images."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm


def embed_images(
    encode: Callable[[Tensor], Tensor],
    images: Dataset[dict[str, Any]],
    *,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    name: str = "embed images",
) -> Tensor:
    """The embeddings of images, in their order and as long as `encode` gives them.

    Args:
        encode: float[B, 3, H, W] on `device` -> float[B, D]; e.g. an open teacher, or `lambda x: encoder(x).pooled`.
        images: items with "pixel_values" float[3, H, W], preprocessed as belongs to the weights.
        batch_size: images at a time.
        device, dtype: of the weights.
        name: of the progress bar.

    Returns:
        float32[N, D] on the CPU.

    Raises:
        UserError: an image is missing or damaged.
    """
    batches = tqdm(DataLoader(images, batch_size=batch_size), desc=name, unit="batch")
    with torch.inference_mode():
        return torch.cat([encode(batch["pixel_values"].to(device, dtype)).float().cpu() for batch in batches])
