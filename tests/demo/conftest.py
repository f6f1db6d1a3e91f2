"""The demo as a process that serves two tiny models, and a browser."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx
import pytest
import torch
from PIL import Image

from demo.examples import draw_examples
from sparse_vlm.vlm.build import build_vlm
from tests.demo.visitor import PATIENCE, QUESTION, clear
from tests.forked import wait_for_output
from train.forked import fork_python

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

MAX_NEW_TOKENS = 12


class Served(NamedTuple):
    """The running demo.

    Attributes:
        address: the page's.
        model: directory of the first model.
        examples: the operator's example questions, a JSON file.
    """

    address: str
    model: Path
    examples: Path


@pytest.fixture(scope="session")
def dense_vlm_dir(tmp_path_factory: pytest.TempPathFactory, clip_dir: Path, llm_dir: Path) -> Path:
    """A VLM with the dense ViT of `clip_dir` as its vision tower: 16 patches."""
    directory = tmp_path_factory.mktemp("dense") / "vlm"
    build_vlm(clip_dir, llm_dir, directory)
    return directory


@pytest.fixture(scope="session")
def examples(tmp_path_factory: pytest.TempPathFactory, images: list[Image.Image]) -> Path:
    """A file for `--examples`, outside the demo's folder of uploads."""
    folder = tmp_path_factory.mktemp("examples")
    images[0].save(folder / "noise.png")
    file = folder / "examples.json"
    file.write_text(json.dumps([{"image": "noise.png", "question": "Is it noise?"}]))
    return file


@pytest.fixture(scope="package")  # not for longer: an idle gradio server uses CPU time
def served(
    vlm_dir: Path, dense_vlm_dir: Path, examples: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """`python -m demo.app` with a SparseFormer and a dense tower side by side, on a free port."""
    log = tmp_path_factory.mktemp("demo") / "log.txt"
    command = ["-m", "demo.app", "--model", str(vlm_dir), "--compare", str(dense_vlm_dir), "--port", "0"]
    options = ["--max_new_tokens", str(MAX_NEW_TOKENS), "--max_upload_mb", "8"]
    options += ["--examples", str(examples), "--dtype", "float32"]
    process = fork_python([*command, *options], {"TMPDIR": str(log.parent)}, printed=log, threads=1)
    try:
        address = wait_for_output(process, log, r"http://127\.0\.0\.1:\d+")
        assert httpx.get(address, timeout=60).status_code == 200
        yield Served(address, vlm_dir, examples)
    finally:
        process.terminate()
        process.join()
    text = log.read_text()  # gradio logs a traceback where it refuses a path
    assert text.count("Traceback") == text.count("gradio.exceptions.InvalidPathError: Cannot move"), text
    assert os.listdir(log.parent) == [log.name]  # the uploads are deleted


@pytest.fixture(scope="package")
def browser() -> "Iterator[Browser]":
    """The system's chromium; playwright's own browsers cannot be downloaded everywhere."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no chromium: `make chromium` installs it on Debian as root")
    with sync_api.sync_playwright() as playwright:
        # a container's root has no sandbox, and its /dev/shm is small
        options = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        # a camera that shows a moving pattern and needs no permission
        options += ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
        try:
            browser = playwright.chromium.launch(executable_path=chromium, args=options)
        except sync_api.Error as error:  # e.g. Ubuntu's chromium, which only installs a snap
            pytest.skip(f"{chromium} does not start here: {error.message.splitlines()[0]}")
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def requests() -> list[str]:
    """Every address that the page has requested."""
    return []


@pytest.fixture(scope="module")
def opened(browser: "Browser", served: Served, requests: list[str]) -> "Iterator[Page]":
    """The page, opened once for all tests."""
    page = browser.new_page(viewport={"width": 1400, "height": 1100})
    page.set_default_timeout(PATIENCE)
    page.on("request", lambda request: requests.append(request.url))
    page.goto(served.address)
    page.wait_for_selector(QUESTION)
    yield page
    page.close()


@pytest.fixture
def page(opened: "Page") -> "Page":
    """The page with an empty conversation."""
    clear(opened)
    return opened


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return draw_examples(tmp_path)[0].image


@pytest.fixture(scope="session")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the screenshots: $DEMO_SCREENSHOTS, else a temporary folder."""
    folder = Path(os.environ.get("DEMO_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def vlm(vlm_dir: Path) -> tuple[Any, Any]:
    """Model and processor of the first model, in this process."""
    from sparse_vlm.vlm.loading import load_vlm

    return load_vlm(vlm_dir)


@pytest.fixture(scope="session")
def images() -> list[Image.Image]:
    """Ten different images."""
    generator = torch.Generator().manual_seed(0)
    return [
        Image.fromarray(torch.randint(0, 256, (48, 64, 3), generator=generator, dtype=torch.uint8).numpy())
        for _ in range(10)
    ]


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Warnings of the page; gradio shows none outside of a request."""
    import gradio as gr

    shown: list[str] = []
    monkeypatch.setattr(gr, "Warning", shown.append)
    return shown


@pytest.fixture
def message(images: list[Image.Image], tmp_path: Path) -> dict[str, Any]:
    images[0].save(tmp_path / "a.png")
    return {"text": "What is it?", "files": [str(tmp_path / "a.png")]}
