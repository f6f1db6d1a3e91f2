"""An exported VLM in chromium: the page of `sparse-vlm export --browser`, served as static files."""

from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from sparse_vlm.cli import main
from sparse_vlm.vlm.chat import answer
from sparse_vlm.vlm.export.page import PACKAGES
from sparse_vlm.vlm.loading import load_vlm
from tests.demo.visitor import PATIENCE

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.slow
NPM = Path(__file__).parents[2] / "build" / "npm"
MAX_NEW_TOKENS = 64  # of the page


class Quiet(SimpleHTTPRequestHandler):
    """`python -m http.server` without its log."""

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def address(worded_vlm_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of the page of a tiny model."""
    missing = [package.archive for package in PACKAGES if not (NPM / package.archive).is_file()]
    if missing:
        pytest.skip(f"{NPM} lacks {', '.join(missing)}: `make npm-packages` fetches them")
    folder = tmp_path_factory.mktemp("browser") / "page"
    assert main(["export", str(worded_vlm_dir), str(folder), "--browser", "--npm_packages", str(NPM)]) == 0
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def page(browser: "Browser", address: str) -> "Iterator[Page]":
    page = browser.new_page()
    page.set_default_timeout(PATIENCE)
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(address)
    page.wait_for_selector("#ask:enabled")
    yield page
    page.close()
    assert [url for url in requests if not url.startswith((address, "blob:", "data:"))] == []


def ask(page: "Page", question: str, *files: Path) -> tuple[str, str]:
    """Return the answer and the status line."""
    page.set_input_files("#image", files)
    page.fill("#question", question)
    page.click("#ask")
    page.wait_for_selector("#ask:enabled")
    return page.inner_text("#answer"), page.inner_text("#status")


def test_the_page_answers_as_the_model_does(
    page: "Page", worded_vlm_dir: Path, images: list[Image.Image], shapes: list[Image.Image], tmp_path: Path
) -> None:
    model, processor = load_vlm(worded_vlm_dir)
    asked: list[tuple[Image.Image | None, str]] = [(image, "What is not shown in the image?") for image in images[:3]]
    asked += [(images[1], "What color is the shape?"), (None, "Is there a circle?"), (shapes[0], "Is it red?")]
    transparent = Image.new("RGBA", (130, 70), (0, 0, 0, 0))
    transparent.paste(shapes[0], (20, 3))
    asked.append((transparent, "Is it red?"))
    found = []
    for number, (image, question) in enumerate(asked):
        files = [] if image is None else [tmp_path / f"{number}.png"]
        for file in files:
            image.save(file)  # type: ignore[union-attr]
        text, status = ask(page, question, *files)
        found.append(text)
        assert "First token after" in status or "1 token after" in status or status == "The answer is empty."
    assert found == [answer(model, processor, image, question, MAX_NEW_TOKENS) for image, question in asked]
    assert len(set(found)) > 3


def test_bad_input_is_a_sentence(page: "Page", tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not an image")
    assert ask(page, " ")[1] == "The question is empty."
    assert (
        ask(page, "what is <image>?")[1] == "The question contains <image>, which has a meaning of its own. Remove it."
    )
    assert ask(page, "What is it?", tmp_path / "text.png")[1] == "text.png is not an image that this browser can read."


def test_a_page_without_its_model_says_so(browser: "Browser", address: str) -> None:
    page = browser.new_page()
    page.set_default_timeout(PATIENCE)
    page.route("**/export.json", lambda route: route.fulfill(status=404))
    page.goto(address)
    page.wait_for_function("() => document.querySelector('#status').textContent.includes('cannot be opened')")
    assert page.inner_text("#status").startswith("The model cannot be opened: export.json cannot be loaded: 404")
    page.close()
