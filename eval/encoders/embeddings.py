"""Embeddings of whole sets of images."""

from collections.abc import Callable, Mapping
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
    """Embed images in their order; the embeddings keep the length that `encode` gives them.

    Args:
        encode: float[B, 3, H, W] on `device` -> float[B, D]; e.g. a teacher, or `lambda x: encoder(x).pooled`.
        images: items with "pixel_values" float[3, H, W], preprocessed for these weights.
        batch_size: images computed together.
        device, dtype: device and dtype of the weights.
        name: title of the progress bar.

    Returns:
        float32[N, D] on the CPU.
    """
    embedded = encode_images(
        lambda pixels: {"embeddings": encode(pixels)},
        images,
        batch_size=batch_size,
        device=device,
        dtype=dtype,
        name=name,
    )
    return embedded["embeddings"]


def encode_images(
    encode: Callable[[Tensor], Mapping[str, Tensor]],
    images: Dataset[dict[str, Any]],
    *,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    name: str = "encode images",
) -> dict[str, Tensor]:
    """Compute several results per image in one pass over the images, in their order.

    Args:
        encode: float[B, 3, H, W] on `device` -> results float[B, …] by name.
        images, batch_size, device, dtype, name: see `embed_images`.

    Returns:
        float32[N, …] on the CPU, by name.
    """
    batches = tqdm(DataLoader(images, batch_size=batch_size), desc=name, unit="batch")
    with torch.inference_mode():
        parts = [
            {key: value.float().cpu() for key, value in encode(batch["pixel_values"].to(device, dtype)).items()}
            for batch in batches
        ]
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
