"""Image data without the packages of the extras."""

import subprocess
import sys
from pathlib import Path

import pytest

WITHOUT_EXTRAS = """
import sys

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name in ("webdataset", "datasets", "transformers", "accelerate", "fsspec", "pyarrow"):
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, NotInstalled())
from sparse_vlm.data.images import augmentation, files, labels, loader, seeded, sets, shards, sources
from sparse_vlm.errors import UserError

for spec in sys.argv[1:]:
    try:
        print(len(sources.open_images(spec, None)))
    except UserError as error:
        print(error)
"""


@pytest.mark.slow
def test_images_need_the_core_dependencies_only(image_folder: Path) -> None:
    """A folder opens without the packages of the extras. Other sources name the extra to install."""
    command = [sys.executable, "-c", WITHOUT_EXTRAS, str(image_folder), "hf:name", "hf-stream:name", "wds:a.tar"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    install = "pip install 'sparse-vlm[bootstrap]'."
    table = f"Reading a Hugging Face data set needs datasets: {install}"
    shards = f"Reading webdataset shards needs webdataset: {install}"
    assert ran.stdout.splitlines() == ["10", table, table, shards]
