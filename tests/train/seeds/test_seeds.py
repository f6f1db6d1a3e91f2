"""train.bootstrap runs unchanged for each family of seeds: the loss falls, no weight is lost, the result opens."""

import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import pytest
import torch

from sparse_vlm.bootstrap import Teacher, open_teacher
from sparse_vlm.encoder import SparseFormer
from tests.train.seeds.families import FAMILIES
from tests.train.vision.bootstrap_runs import arguments, trained, weights
from train.bootstrap import main

STEPS = 6
SIZES = {"dinov2": 56, "dinov2 with registers": 56}  # in pixels; 64 for patches of 16 and 32
ADDED = {
    "normalize_targets": "standardize",
    "feature_weight": 0.1,
    "grid_weight": 1.0,
    "grid_decoder_width": 64,
    "grid_decoder_depth": 1,
}


class Seed(NamedTuple):
    """A family's checkpoint, and the input size of the runs."""

    spec: str
    image_size: int

    def open(self, **options: Any) -> Teacher:
        return open_teacher(self.spec, image_size=self.image_size, **options)


@pytest.fixture(scope="module", params=FAMILIES)
def seed(request: pytest.FixtureRequest) -> Iterator[Seed]:
    torch.manual_seed(0)
    with TemporaryDirectory() as folder:  # pytest would keep the hundreds of megabytes of three runs
        yield Seed(FAMILIES[request.param](Path(folder)), SIZES.get(request.param, 64))


def run(seed: Seed, images: Path, out: Path, **options: Any) -> list[float]:
    """Bootstrap for six steps with the command's default split of the blocks; return the losses."""
    command = arguments(Path(seed.spec), images, out, image_size=seed.image_size, focus_width=64, max_steps=STEPS)
    assert main([*command, *(word for name, value in options.items() for word in (f"--{name}", str(value)))]) == 0
    return [line["loss"] for line in trained(out)]


@pytest.mark.slow
@pytest.mark.parametrize("layer", [None, -2])
def test_a_bootstrap_runs(layer: int | None, seed: Seed, class_folders: Path, tmp_path: Path) -> None:
    """The paper's loss on the last block, and all that a recipe may add on an earlier one."""
    options = {} if layer is None else {**ADDED, "teacher_layer": layer}
    losses = run(seed, class_folders, tmp_path / "out", **options)
    assert len(losses) == STEPS
    assert sum(losses[-2:]) < (0.9 if layer is None else 0.97) * sum(losses[:2])  # deviations take longer to learn
    assert_complete(seed.open(layer=layer), tmp_path / "out")


def assert_complete(teacher: Teacher, out: Path) -> None:
    """Assert that the report has each weight of both models once, and that the result opens as the student of both."""
    fates = json.loads((out / "inheritance.json").read_text())["fates"]
    old, new = teacher.trunk.state_dict(), weights(out)
    assert sorted(fate["teacher"] for fate in fates if fate["teacher"]) == sorted(old)
    assert sorted(fate["student"] for fate in fates if fate["student"]) == sorted(new)
    for fate in fates:
        assert fate["numbers"] == (new[fate["student"]] if fate["student"] else old[fate["teacher"]]).numel()
        if fate["fate"] == "copied and frozen":
            assert torch.equal(new[fate["student"]], old[fate["teacher"]])
    student = SparseFormer.from_pretrained(out)
    size = teacher.preprocessing.crop
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        output = student(images)
    assert output.pooled.shape == teacher(images).shape
    assert output.pooled.isfinite().all()
    assert output.tokens.shape[1] == teacher.trunk.num_prefix_tokens + 4
