"""The page for the browser without a browser: its files, and its preprocessing in Node."""

import io
import json
import shutil
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sparse_vlm.cli import main
from sparse_vlm.encoder.preprocessing import Preprocessing, make_transform, remove_canvas
from sparse_vlm.errors import UserError
from sparse_vlm.vlm.export.page import PACKAGES, SITE, fetch_packages, write_page

SIZES = [(64, 64), (64, 90), (200, 130), (31, 57), (700, 3), (65, 1000), (97, 64)]
SETTINGS = [
    (Preprocessing(resize=64, crop=64), "crop"),
    (Preprocessing(resize=73, crop=64, interpolation="bilinear"), "crop"),
    (Preprocessing(resize=70, crop=63, resize_mode="squash"), "crop"),
    (Preprocessing(resize=64, crop=64), "native"),
]
SCRIPT = """
import { readFileSync, writeFileSync } from "node:fs";
const { preprocess } = await import(process.argv[1]);
const [images, settings] = JSON.parse(readFileSync(0));
for (const { rgba, width, height, setting, out } of images) {
  const { data, dims } = preprocess({ data: readFileSync(rgba), width, height }, settings[setting]);
  writeFileSync(out, data);
  console.log(JSON.stringify(dims));
}
"""


def test_the_browser_receives_the_same_pixels(tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("there is no node")
    rng, images, expected = np.random.default_rng(0), [], []
    for number, (width, height) in enumerate(SIZES):
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
        (tmp_path / f"{number}.rgba").write_bytes(image.convert("RGBA").tobytes())
        for setting, (preprocessing, aspect) in enumerate(SETTINGS):
            names = {"rgba": str(tmp_path / f"{number}.rgba"), "out": str(tmp_path / f"{len(images)}.pixels")}
            images.append({"width": width, "height": height, "setting": setting, **names})
            expected.append(remove_canvas(make_transform(preprocessing, aspect)(image)))
    settings = [{"preprocessing": vars(preprocessing), "aspect": aspect} for preprocessing, aspect in SETTINGS]
    command = [node, "--input-type=module", "-e", SCRIPT, str(SITE / "image.js")]
    result = subprocess.run(command, input=json.dumps([images, settings]), capture_output=True, text=True, check=True)
    for line, image, pixels in zip(result.stdout.splitlines(), images, expected, strict=True):
        assert json.loads(line) == [1, *pixels.shape]
        found = torch.frombuffer(bytearray(Path(str(image["out"])).read_bytes()), dtype=torch.float32)
        assert torch.equal(found.view(pixels.shape), pixels), image


def archives(folder: Path) -> Path:
    """Write archives with the files of PACKAGES, each with its own name as its content."""
    for package in PACKAGES:
        with tarfile.open(folder / package.archive, "w:gz") as archive:
            for name in package.files:
                member = tarfile.TarInfo(f"package/{name}")
                member.size = len(name)
                archive.addfile(member, io.BytesIO(name.encode()))
    return folder


def test_the_page_has_its_libraries(tmp_path: Path) -> None:
    (tmp_path / "page").mkdir()
    write_page(tmp_path / "page", archives(tmp_path))
    files = {str(file.relative_to(tmp_path / "page")) for file in (tmp_path / "page").rglob("*") if file.is_file()}
    libraries = {f"lib/{Path(name).name}" for package in PACKAGES for name in package.files}
    assert files == {"index.html", "page.js", "vlm.js", "image.js", *libraries}
    assert (tmp_path / "page" / "lib" / "tokenizers.min.mjs").read_text() == "dist/tokenizers.min.mjs"


def test_missing_and_damaged_packages(tmp_path: Path) -> None:
    for number, content in enumerate((None, b"not an archive", b"")):
        folder = tmp_path / str(number)
        (folder / "page").mkdir(parents=True)
        archive = archives(folder) / PACKAGES[1].archive
        archive.unlink()
        if content is not None:
            archive.write_bytes(content)
        with pytest.raises(UserError, match=r"There is no .*tgz: `npm pack" if content is None else "is damaged"):
            write_page(folder / "page", folder)


def test_without_npm(
    vlm_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["export", str(vlm_dir), str(tmp_path / "out"), "--browser"]) == 2
    assert "onnxruntime-web@" in (error := capsys.readouterr().err)
    assert "npm is missing. Install Node.js, or run `npm pack" in error
    assert not (tmp_path / "out").exists()
    fetch_packages(archives(tmp_path))  # nothing to fetch


def test_npm_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho 'npm error network request failed' >&2\nexit 1\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(
        UserError, match=r"`npm pack onnxruntime-web@\S+ @\S+` failed: npm error network request failed\."
    ):
        fetch_packages(tmp_path / "packages")
