import json
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from safetensors.torch import save_file

from llava_patch.names import TowerName, parse_tower_name
from llava_patch.weights import encoder_config, encoder_from_checkpoint, open_encoder
from sparse_vlm.encoder import SparseFormer, SparseFormerConfig, create_encoder
from sparse_vlm.encoder.variants import RELEASED_FILES
from sparse_vlm.errors import UserError


@pytest.fixture(scope="module")
def clip_b(tmp_path_factory: pytest.TempPathFactory) -> SparseFormer:
    """A full-size variant with random weights."""
    torch.manual_seed(3)
    return create_encoder("sparseformer-clip-b").eval()


@pytest.mark.slow
def test_a_variant_accepts_a_directory_of_the_same_variant(
    clip_b: SparseFormer, encoder_dir: Path, tmp_path: Path
) -> None:
    clip_b.save_pretrained(tmp_path / "clip-b")
    opened = open_encoder(parse_tower_name(f"sparseformer-clip-b?weights={tmp_path / 'clip-b'}"))
    assert torch.equal(opened.stem.conv.weight, clip_b.stem.conv.weight)
    with pytest.raises(UserError, match="is not a sparseformer-clip-b"):
        open_encoder(parse_tower_name(f"sparseformer-clip-b?weights={encoder_dir}"))


@pytest.mark.slow
def test_released_weights_are_read_from_the_cache(
    clip_b: SparseFormer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub" / "checkpoints" / RELEASED_FILES["sparseformer-clip-b"]
    file.parent.mkdir(parents=True)
    torch.save({"wrong": torch.zeros(1)}, file)
    with pytest.raises(UserError, match="do not fit"):  # it was read, strictly
        open_encoder(TowerName("sparseformer-clip-b", None))


def test_without_a_network_the_error_names_the_path_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def unreachable(*args: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(
        "torch.hub.download_url_to_file", unreachable
    )  # the only part that cannot run without a network
    with pytest.raises(UserError, match="save that file as") as error:
        open_encoder(TowerName("sparseformer-clip-l", None))
    assert RELEASED_FILES["sparseformer-clip-l"] in str(error.value)


@pytest.mark.parametrize("source", ["/nowhere/at/all", "no such name!"])
def test_a_missing_encoder(source: str) -> None:
    with pytest.raises(UserError, match="is neither a directory nor a valid name"):
        encoder_config(TowerName(None, source))


def test_a_hub_id_without_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="cannot be downloaded from the hub"):
        encoder_config(TowerName(None, "someone/encoder"))


@pytest.mark.parametrize("layout", ["safetensors", "bin", "sharded"])
def test_a_checkpoint_of_any_layout(layout: str, tiny_config: SparseFormerConfig, tmp_path: Path) -> None:
    torch.manual_seed(2)
    tuned = SparseFormer(tiny_config)
    weights = {f"model.vision_tower.vision_tower.{key}": value for key, value in tuned.state_dict().items()}
    if layout == "safetensors":
        save_file(weights, tmp_path / "model.safetensors")
    elif layout == "bin":
        torch.save(weights, tmp_path / "pytorch_model.bin")
    else:
        half = len(weights) // 2
        for number, keys in enumerate((list(weights)[:half], list(weights)[half:])):
            save_file({key: weights[key] for key in keys}, tmp_path / f"model-{number}.safetensors")
        index = {key: f"model-{int(number >= half)}.safetensors" for number, key in enumerate(weights)}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    found = encoder_from_checkpoint(str(tmp_path), tiny_config)
    assert found is not None
    assert all(torch.equal(found.state_dict()[key], value) for key, value in tuned.state_dict().items())


def test_a_checkpoint_without_a_tower(tiny_config: SparseFormerConfig, tmp_path: Path) -> None:
    save_file({"lm_head.weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    assert encoder_from_checkpoint(str(tmp_path), tiny_config) is None
    assert encoder_from_checkpoint("never/fetched", tiny_config) is None


def test_a_checkpoint_with_another_tower(tiny_config: SparseFormerConfig, tmp_path: Path) -> None:
    clip = {"model.vision_tower.vision_tower.vision_model.embeddings.class_embedding": torch.zeros(1)}
    save_file(clip, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"the vision tower in .* do not fit"):
        encoder_from_checkpoint(str(tmp_path), tiny_config)
