"""Videos in LLaVA-NeXT, whose `get_2dPool` arranges the tokens of each frame in a grid. Ours stay as they are."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from llava_patch.patches import ARCH, TOWERS
from llava_patch.tower import SparseFormerTower
from tests.llava_patch.tiny import run_forked

FEATURES = torch.arange(2 * 9 * 4.0).view(2, 9, 4)  # two frames of nine tokens after the projector


class Model:
    """The part of LlavaMetaForCausalLM that pools."""

    def __init__(self, tower: nn.Module) -> None:
        self.tower = tower

    def get_vision_tower(self) -> nn.Module:
        return self.tower

    def get_2dPool(self, image_feature: Tensor, stride: int = 2) -> Tensor:  # noqa: N802
        side = self.get_vision_tower().num_patches_per_side
        grid = image_feature.view(len(image_feature), side, side, -1).permute(0, 3, 1, 2)
        return nn.functional.max_pool2d(grid, stride).flatten(2).transpose(1, 2)


@pytest.fixture
def patched() -> type[Model]:
    (patch,) = [patch for patch in TOWERS if patch.attribute.endswith("get_2dPool")]
    assert patch.needed(Model.get_2dPool)
    return type("Patched", (Model,), {"get_2dPool": patch.replace(Model.get_2dPool)})


def test_the_tokens_of_our_towers_stay(patched: type[Model], tower: str) -> None:
    ours = SparseFormerTower(f"{tower}?tokens=9", SimpleNamespace(mm_vision_select_layer=-2))
    with pytest.raises(ValueError, match="have no grid"):
        Model(ours).get_2dPool(FEATURES)
    assert patched(ours).get_2dPool(FEATURES) is FEATURES
    assert patched(ours).get_2dPool(FEATURES, stride=4) is FEATURES
    assert patched(ours).get_2dPool(FEATURES, 4) is FEATURES


def test_the_tokens_of_other_towers_are_pooled(patched: type[Model]) -> None:
    other = nn.Identity()
    other.num_patches_per_side = 3
    assert torch.equal(patched(other).get_2dPool(FEATURES, 3), Model(other).get_2dPool(FEATURES, stride=3))
    assert patched(other).get_2dPool(FEATURES).shape == (2, 1, 4)


ARCH_FILE = """
from .multimodal_encoder.builder import build_vision_tower

class LlavaMetaModel:
    def initialize_vision_modules(self, model_args): ...

class LlavaMetaForCausalLM:
    def initialize_vision_tokenizer(self, model_args): ...
    def get_2dPool(self, image_feature, stride=2): ...
"""
PROGRAM = f"""
import json, sys
sys.path.insert(0, sys.argv[1])
import llava_patch
llava_patch.install()
import {ARCH} as arch
def patched():
    return hasattr(arch.LlavaMetaForCausalLM.get_2dPool, "__wrapped__")
found = [patched()]
llava_patch.uninstall()
found.append(patched())
llava_patch.install()
found.append(patched())
print(json.dumps(found))
"""


@pytest.mark.slow
def test_the_patch_is_made_after_the_import_and_undone(tmp_path: Path) -> None:
    """In a process of its own, with the modules of a clone that are patched."""
    for package in ("llava", "llava/model", "llava/model/multimodal_encoder"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
    (tmp_path / "llava/model/llava_arch.py").write_text(ARCH_FILE)
    (tmp_path / "llava/model/multimodal_encoder/builder.py").write_text("def build_vision_tower(config): ...\n")
    (tmp_path / "program.py").write_text(PROGRAM)
    printed = run_forked(tmp_path / "program.py", tmp_path, printed=tmp_path / "printed.txt")
    assert json.loads(printed.splitlines()[-1]) == [True, False, True]
