"""Fixtures: a tiny VLM whose answers differ, and its export."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparse_vlm.cli import main
from sparse_vlm.vlm.export import folder as export_folder
from sparse_vlm.vlm.export.runtime import OnnxVLM
from sparse_vlm.vlm.export.settings import DECODER, EMBEDDING, VISION
from sparse_vlm.vlm.loading import load_vlm
from tests.vlm.conftest import Loaded

WRITERS = {VISION: "_write_vision", EMBEDDING: "_write_embedding", DECODER: "_write_decoder"}


@pytest.fixture(scope="session")
def worded(worded_vlm_dir: Path) -> Loaded:
    """The model and its processor. Tests must not change them."""
    return load_vlm(worded_vlm_dir)


@pytest.fixture(scope="session")
def exported_dir(worded_vlm_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `sparse-vlm export` writes for it."""
    folder = tmp_path_factory.mktemp("onnx") / "exported"
    assert main(["export", str(worded_vlm_dir), str(folder)]) == 0
    return folder


@pytest.fixture(scope="session")
def exported(exported_dir: Path) -> OnnxVLM:
    return OnnxVLM(exported_dir, threads=1)


@pytest.fixture
def reuse(exported_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make further exports take some ONNX files from `exported_dir`, since writing them takes seconds each."""

    def take(*files: str) -> None:
        def write(model: Any, *arguments: Any, **options: Any) -> None:
            target = next(argument for argument in arguments if isinstance(argument, Path))
            shutil.copyfile(exported_dir / target.name, target)

        for file in files:
            monkeypatch.setattr(export_folder, WRITERS[file], write)

    return take
