"""`--cache_visual_tokens DIR`: a frozen vision tower computes each image's tokens once, before training."""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from sparse_vlm.data.conversations.dataset import ConversationDataset, SampleImage
from sparse_vlm.data.conversations.visual_tokens import VisualTokenCache, file_hash
from sparse_vlm.errors import UserError
from sparse_vlm.files import write_json
from sparse_vlm.fingerprint import fingerprint
from sparse_vlm.vlm.modeling import SparseVLMForConditionalGeneration
from sparse_vlm.vlm.processing import SparseVLMProcessor
from train.stages.precision import compute_dtype
from train.stages.stage import StageArguments

logger = logging.getLogger(__name__)
SHARD_IMAGES = 512


def use_cached_tokens(
    directory: str | Path,
    datasets: Sequence[ConversationDataset],
    model: SparseVLMForConditionalGeneration,
    processor: SparseVLMProcessor,
    args: StageArguments,
) -> None:
    """Compute the missing visual tokens below `directory`, and make the data sets read them from there.

    The folder of the tokens is named by a fingerprint of everything that determines them, so tokens of another encoder
    are never read. Folders are never removed. Each process computes its share of the images. After an interruption,
    only missing tokens are computed.

    Args:
        directory: the cache, visible to all processes.
        datasets: the data sets; tokens of images that they share are computed once.
        model: the model. Its vision tower is frozen, not sharded, and moved to the stage's device.
        processor: the model's processor.
        args: device, precision (also of the stored tokens), batch size and data workers.

    Raises:
        UserError: an image or a shard cannot be read, or ZeRO-3 has sharded the tower.
    """
    tower: nn.Module = model.model.vision_tower
    if any(hasattr(parameter, "ds_id") for parameter in tower.parameters()):
        raise UserError(
            "--cache_visual_tokens needs the whole vision tower in each process, but ZeRO-3 has sharded it: use "
            "train/configs/deepspeed/zero2.json."
        )
    tower.to(args.device).eval()
    _broadcast(tower, args)
    about = _about(model, processor, compute_dtype(args))
    folder = Path(directory) / hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    cache = VisualTokenCache(folder)
    if args.process_index == 0:
        write_json(folder / "about.json", about)
    distinct = {(id(p.images), p.name): p for dataset in datasets for p in dataset.distinct_images()}
    mine = list(distinct.values())[args.process_index :: args.world_size]
    computed = _fill(cache, mine, _encoder(model, args), datasets[0].preprocess, args)
    args.distributed_state.wait_for_everyone()
    cache.refresh()
    total = _sum(computed, args)
    if args.process_index == 0:
        counts = f"{total} computed now, {len(distinct) - total} found"
        logger.info("Visual tokens of %d images in %s: %s", len(distinct), folder, counts)
    for dataset in datasets:
        dataset.visual_tokens = cache


def _broadcast(tower: nn.Module, args: StageArguments) -> None:
    """Send the first process' weights to all: under ZeRO-3, loading reads them only there."""
    if args.world_size > 1:
        for weight in tower.state_dict().values():
            torch.distributed.broadcast(weight, 0)


def _sum(count: int, args: StageArguments) -> int:
    """Sum over the processes."""
    total = torch.tensor(count, device=args.device)
    if args.world_size > 1:
        torch.distributed.all_reduce(total)
    return int(total)


def _about(
    model: SparseVLMForConditionalGeneration, processor: SparseVLMProcessor, dtype: torch.dtype
) -> dict[str, Any]:
    """Return everything that determines visual tokens, except the image."""
    return {
        "format": 1,
        "vision_weights": fingerprint(model.model.vision_tower),
        "preprocessing": processor.image_processor.to_dict(),
        "vision_feature_layer": model.config.vision_feature_layer,
        "vision_feature_select_strategy": model.config.vision_feature_select_strategy,
        "dtype": str(dtype),
    }


def _encoder(model: SparseVLMForConditionalGeneration, args: StageArguments) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the frozen tower as float[I, 3, H, W] -> float[I, n, C] on the CPU, in the stage's precision."""
    dtype = compute_dtype(args)

    @torch.no_grad()
    def encode(pixel_values: torch.Tensor) -> torch.Tensor:
        with torch.autocast(args.device.type, dtype, enabled=dtype != torch.float32):
            return model.model.encode_images(pixel_values.to(args.device)).to("cpu", dtype)

    return encode


def _fill(
    cache: VisualTokenCache,
    images: Sequence[SampleImage],
    encode: Callable[[torch.Tensor], torch.Tensor],
    preprocess: Callable[[Any], torch.Tensor],
    args: StageArguments,
) -> int:
    """Compute and write the missing tokens of this process' images, and return the number of those images."""
    loader = DataLoader(
        _Missing(images, cache, preprocess),
        batch_size=args.per_device_train_batch_size,
        num_workers=args.dataloader_num_workers,
        collate_fn=list,
    )
    new: dict[str, torch.Tensor] = {}
    computed = 0
    for batch in tqdm(loader, "visual tokens", disable=args.disable_tqdm or args.process_index > 0):
        missing = {key: pixels for key, pixels in batch if pixels is not None}
        computed += sum(pixels is not None for _, pixels in batch)
        if missing:
            tokens = encode(torch.stack(list(missing.values())))
            new |= {key: one.clone() for key, one in zip(missing, tokens, strict=True)}
        if len(new) >= SHARD_IMAGES:
            cache.add(new)
            new = {}
    if new:
        cache.add(new)
    return computed


class _Missing(Dataset):
    """(key, float[3, H, W]) of each image, or (key, None) if it is in the cache."""

    def __init__(
        self, images: Sequence[SampleImage], cache: VisualTokenCache, preprocess: Callable[[Any], torch.Tensor]
    ) -> None:
        self.images, self.cache, self.preprocess = images, cache, preprocess

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[str, torch.Tensor | None]:
        image = self.images[index]
        data = image.read()
        key = file_hash(data)
        if key in self.cache:
            return key, None
        return key, self.preprocess(image.decode(data))
