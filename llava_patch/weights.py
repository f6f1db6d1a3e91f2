"""Configuration and weights of a tower: from a checkpoint of LLaVA, a directory, the hub, a release, or a seed."""

import json
import re
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import safe_open
from torch import Tensor

from llava_patch.names import TowerName
from sparse_vlm.encoder import SparseFormer, SparseFormerConfig, create_encoder
from sparse_vlm.encoder.checkpoints import CONFIG_FILE, WEIGHTS_FILE, load_config
from sparse_vlm.encoder.variants import fetch_released, variant_config
from sparse_vlm.errors import UserError, one_line

SEED = 0
# model.vision_tower is the tower, and its vision_tower is the encoder, as in LLaVA's own CLIP tower.
TOWER_KEY = re.compile(r"(?:^|\.)vision_tower\.vision_tower\.(.+)$")
CHECKPOINT_FILES = ("model.safetensors", "pytorch_model.bin")


def encoder_config(name: TowerName) -> SparseFormerConfig:
    """Return the configuration of a tower's encoder."""
    if name.variant is not None:
        return variant_config(name.variant)
    assert name.encoder is not None
    return load_config(_directory(name.encoder, [CONFIG_FILE]))


def open_encoder(name: TowerName) -> SparseFormer:
    """Open the encoder that a tower's name stands for.

    Raises:
        UserError: the weights are missing, cannot be downloaded, or belong to another variant.
    """
    if name.variant is None:
        assert name.encoder is not None
        return SparseFormer.from_pretrained(_directory(name.encoder, [CONFIG_FILE, WEIGHTS_FILE]))
    if name.weights is None:
        return SparseFormer.from_released(fetch_released(name.variant), name.variant)
    if name.weights == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            return create_encoder(name.variant).eval()
    if Path(name.weights).is_file():
        return SparseFormer.from_released(name.weights, name.variant)
    encoder = SparseFormer.from_pretrained(_directory(name.weights, [CONFIG_FILE, WEIGHTS_FILE]))
    _check_variant(encoder.config, name)
    return encoder


def encoder_from_checkpoint(checkpoint: str, config: SparseFormerConfig) -> SparseFormer | None:
    """Open the encoder with the weights in a checkpoint of LLaVA, tuned or not; None if it does not contain any.

    Args:
        checkpoint: directory, or hub id that has been downloaded already, because LLaVA opens its own part first.
        config: configuration of the encoder.
    """
    weights = _tower_weights(checkpoint)
    if not weights:
        return None
    return SparseFormer.from_weights(config, weights, source=f"the vision tower in {checkpoint}")


def _directory(source: str, files: list[str]) -> Path:
    if Path(source).is_dir():
        return Path(source)
    try:
        return Path(snapshot_download(source, allow_patterns=files))
    except HFValidationError as error:
        raise UserError(f"{source} is neither a directory nor a valid name of a repository on the hub.") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"{source} is not a directory, and cannot be downloaded from the hub ({one_line(error)}). "
            "Without a network, name a directory written by `SparseFormer.save_pretrained`."
        ) from error


def _check_variant(config: SparseFormerConfig, name: TowerName) -> None:
    assert name.variant is not None
    wanted = variant_config(name.variant)
    for part in ("stem", "focus", "cortex"):
        if getattr(config, part) != getattr(wanted, part):
            raise UserError(
                f"{name.weights} is not a {name.variant}, because its {part} differs: write "
                f"sparseformer:{name.weights}."
            )


def _tower_weights(checkpoint: str) -> dict[str, Tensor]:
    directory = Path(checkpoint)
    if not directory.is_dir():
        try:
            directory = Path(snapshot_download(checkpoint, local_files_only=True))
        except (HFValidationError, LocalEntryNotFoundError):
            return {}  # only a configuration, not a checkpoint of LLaVA
    weights: dict[str, Tensor] = {}
    for file in _weight_files(directory):
        weights |= _read_tower(file)
    return weights


def _weight_files(directory: Path) -> list[Path]:
    for name in CHECKPOINT_FILES:
        index = directory / f"{name}.index.json"
        if index.is_file():
            names = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            return sorted({directory / file for key, file in names.items() if TOWER_KEY.search(key)})
        if (directory / name).is_file():
            return [directory / name]
    return []


def _read_tower(file: Path) -> dict[str, Tensor]:
    if file.suffix == ".safetensors":
        with safe_open(file, framework="pt") as content:
            return {
                match[1]: content.get_tensor(match.string) for match in map(TOWER_KEY.search, content.keys()) if match
            }
    content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    return {match[1]: content[match.string] for match in map(TOWER_KEY.search, content) if match}
