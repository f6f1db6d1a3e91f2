"""`--cache_visual_tokens DIR`: a frozen vision tower computes each image's tokens once, before training."""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from sparse_vlm.data.conversations.dataset import ConversationDataset
from sparse_vlm.data.conversations.videos import VisualFile
from sparse_vlm.data.conversations.visual_tokens import VisualTokenCache, token_key
from sparse_vlm.errors import UserError
from sparse_vlm.files import write_json
from sparse_vlm.fingerprint import fingerprint
from sparse_vlm.vlm.modeling import SparseVLMForConditionalGeneration
from sparse_vlm.vlm.processing import SparseVLMProcessor
from sparse_vlm.vlm.views import View, pack_views
from train.stages.precision import compute_dtype
from train.stages.processes import share, summed
from train.stages.stage import StageArguments

logger = logging.getLogger(__name__)
SHARD_IMAGES = 512


def use_cached_tokens(
    directory: str | Path,
    datasets: Mapping[ConversationDataset, Sequence[int]],
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
        datasets: the data sets, each with the numbers of visual tokens per image of which it needs all.
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
    distinct = [(dataset, *found) for dataset, counts in datasets.items() for found in dataset.distinct_files(counts)]
    missing = _Missing(share(distinct, args), cache)
    computed = _fill(cache, missing, _encoder(model, args), args)
    args.distributed_state.wait_for_everyone()
    cache.refresh()
    total = int(summed(torch.tensor(computed), args))
    if args.process_index == 0:
        views = sum(len(views) for _, _, views in distinct)
        counts = f"{total} computed now, {views - total} found"
        images = sum(file.size for _, file, _ in distinct)
        logger.info("%d sets of visual tokens of %d images in %s: %s", views, images, folder, counts)
    for dataset in datasets:
        dataset.reader.visual_tokens = cache


def _broadcast(tower: nn.Module, args: StageArguments) -> None:
    """Send the first process' weights to all: under ZeRO-3, loading reads them only there."""
    if args.world_size > 1:
        for weight in tower.state_dict().values():
            torch.distributed.broadcast(weight, 0)


def _about(
    model: SparseVLMForConditionalGeneration, processor: SparseVLMProcessor, dtype: torch.dtype
) -> dict[str, Any]:
    """Return everything that determines visual tokens, except the image, their number and their box."""
    return {
        "format": 2,
        "vision_weights": fingerprint(model.model.vision_tower),
        "preprocessing": processor.image_processor.to_dict(),
        "vision_feature_layer": model.config.vision_feature_layer,
        "vision_feature_select_strategy": model.config.vision_feature_select_strategy,
        "default_tokens": model.config.image_seq_length,  # which start in the checkpoint's own RoIs
        "dtype": str(dtype),
    }


def _encoder(
    model: SparseVLMForConditionalGeneration, args: StageArguments
) -> Callable[[torch.Tensor, Sequence[View]], list[torch.Tensor]]:
    """Return the frozen tower as (float[I, 3, H, W], views) -> float[n, C] for each view, on the CPU, in the stage's
    precision."""
    dtype = compute_dtype(args)

    @torch.no_grad()
    def encode(pixel_values: torch.Tensor, views: Sequence[View]) -> list[torch.Tensor]:
        with torch.autocast(args.device.type, dtype, enabled=dtype != torch.float32):
            tokens = model.model.encode_images(pixel_values.to(args.device), pack_views(views))
        return [one.to("cpu", dtype) for one in tokens]

    return encode


def _fill(
    cache: VisualTokenCache,
    missing: "_Missing",
    encode: Callable[[torch.Tensor, Sequence[View]], list[torch.Tensor]],
    args: StageArguments,
) -> int:
    """Compute and write the missing tokens of this process' images, and return the number of views that they had."""
    loader = DataLoader(
        missing,
        batch_size=args.per_device_train_batch_size,
        num_workers=args.dataloader_num_workers,
        collate_fn=list,
    )
    new: dict[str, torch.Tensor] = {}
    computed = unwritten = 0
    for batch in tqdm(loader, "visual tokens", disable=args.disable_tqdm or args.process_index > 0):
        files = [file for file in batch if file.views]
        if not files:
            continue
        keys = [key for file in files for key in file.views]
        firsts = accumulate((len(file.pixel_values) for file in files), initial=0)
        views = [
            view._replace(image=first + view.image)
            for first, file in zip(firsts, files, strict=False)
            for view in file.views.values()
        ]
        pixel_values = torch.cat([file.pixel_values for file in files])
        new |= {key: one.clone() for key, one in zip(keys, encode(pixel_values, views), strict=True)}
        computed, unwritten = computed + len(keys), unwritten + len(pixel_values)
        if unwritten >= SHARD_IMAGES:
            cache.add(new)
            new, unwritten = {}, 0
    if new:
        cache.add(new)
    return computed


class _MissingViews(NamedTuple):
    """A file with the views whose tokens are not in the cache.

    Attributes:
        pixel_values: float[I, 3, H, W], its images; empty if there is no such view.
        views: `token_key` -> view, in the coordinates of the pixel values.
    """

    pixel_values: torch.Tensor
    views: dict[str, View]


class _Missing(Dataset):
    """The `_MissingViews` of each file.

    Args:
        files: a data set, one of its images or videos, and the views that it needs.
        cache: the cache.
    """

    def __init__(
        self, files: Sequence[tuple[ConversationDataset, VisualFile, list[View]]], cache: VisualTokenCache
    ) -> None:
        self.files, self.cache = files, cache

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> _MissingViews:
        dataset, file, views = self.files[index]
        contents = file.contents()
        missing = {key: view for view in views if (key := token_key(contents[view.image], view)) not in self.cache}
        if not missing:
            return _MissingViews(torch.empty(0), {})
        reader, opened = dataset.reader, file.decoded(contents)
        placed = {key: reader.placed(view, opened[view.image].size, file.sample) for key, view in missing.items()}
        return _MissingViews(torch.stack([reader.preprocess(image) for image in opened]), placed)
