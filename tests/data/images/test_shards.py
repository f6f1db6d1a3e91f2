"""webdataset's shards: damaged ones, repeated names, suffixes, URLs."""

import functools
import io
import shutil
import tarfile
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import webdataset

from sparse_vlm.data.images.shards import WebShards
from sparse_vlm.data.images.streams import ImageStream
from sparse_vlm.errors import UserError
from tests.data.images.streams import NamedShards, first_pixels, seen


def test_damaged_shards(shards: str, tmp_path: Path, image_files: list[bytes]) -> None:
    whole = Path(shards.replace("{0..2}", "0"))
    (tmp_path / "cut.tar").write_bytes(whole.read_bytes()[:1000])
    with webdataset.TarWriter(str(tmp_path / "text.tar")) as writer:
        writer.write({"__key__": "a", "txt": "not an image"})
    with webdataset.TarWriter(str(tmp_path / "two.tar")) as writer:
        writer.write({"__key__": "a", "png": image_files[0], "seen.png": b"no", "jpg": image_files[1]})
    for spec, sentence in (
        (tmp_path / "cut.tar", r"The shard .*cut.tar cannot be read to its end"),
        (f"pipe:cat {tmp_path}/none.tar", r"The shard pipe:cat .*none.tar cannot be read to its end"),
        (tmp_path / "text.tar", r"The sample a of .*text.tar has 0 images among its suffixes \(txt\)"),
        (
            tmp_path / "two.tar",
            r"has 2 images among its suffixes \(jpg, png, seen.png\)\. Choose one by",
        ),
    ):
        with pytest.raises(UserError, match=sentence):
            seen(ImageStream(WebShards(str(spec)), first_pixels, 5))
    with pytest.raises(UserError, match=r"text\.tar holds no images: its suffixes, .* are txt\. Choose one by"):
        WebShards(str(tmp_path / "text.tar")).count()
    both = WebShards(f"{tmp_path}/cut.tar::pipe:cat {whole}")
    assert both.count() is None
    skipping = ImageStream(both, first_pixels, 4, on_bad_image="skip", shuffle_buffer=0)
    assert len(set(seen(skipping))) == 4
    assert skipping.unreadable == 1
    chosen = WebShards(str(tmp_path / "two.tar"), image_key="jpg")
    assert chosen.count() == 1
    assert torch.equal(
        next(iter(ImageStream(chosen, first_pixels, 1)))["pixel_values"],
        next(iter(ImageStream(NamedShards([image_files[1:2]]), first_pixels, 1)))["pixel_values"],
    )


def test_a_repeated_name_is_one_bad_image(tmp_path: Path, image_files: list[bytes]) -> None:
    """The images after it are read."""
    with tarfile.open(tmp_path / "a.tar", "w") as shard:
        for name, data in zip(("a.png", "a.png", "b.png", "c.PNG", "c.PNG"), image_files, strict=False):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            shard.addfile(info, io.BytesIO(data))
    with pytest.raises(UserError, match=r"The shard .*a\.tar has [ac]\.(png|PNG) twice\. Or skip"):
        seen(ImageStream(WebShards(str(tmp_path / "a.tar")), first_pixels, 3))
    for column in (None, "PNG", ".png"):
        shards = WebShards(str(tmp_path / "a.tar"), column)
        assert shards.count() == 3
        found = [one for one in shards.read(0) if not isinstance(one, UserError)]
        assert [one.data for one in found] == [image_files[0], image_files[2], image_files[3]]
        assert len([*shards.read(0)]) == 5


def test_the_error_explains_dots_in_names(tmp_path: Path, image_files: list[bytes]) -> None:
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        writer.write({"__key__": "photo", "001.png": image_files[0]})
    with pytest.raises(UserError, match=r"suffixes, which begin at the first dot of a name, are 001\.png"):
        WebShards(str(tmp_path / "a.tar")).count()


class QuietHandler(SimpleHTTPRequestHandler):
    """A handler without a log."""

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.mark.skipif(shutil.which("curl") is None, reason="webdataset reads URLs with curl")
def test_shards_from_urls(shards: str) -> None:
    handler = functools.partial(QuietHandler, directory=str(Path(shards).parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{server.server_port}"
        remote = seen(ImageStream(WebShards(f"{base}/{{0..2}}.tar"), first_pixels, 10))
        stops_early = seen(ImageStream(WebShards(f"{base}/0.tar"), first_pixels, 1, shuffle_buffer=0))
        with pytest.raises(UserError, match=rf"The shard {base}/9.tar cannot be read to its end"):
            seen(ImageStream(WebShards(f"{base}/9.tar"), first_pixels, 1))
        server.shutdown()
    assert set(remote) == set(seen(ImageStream(WebShards(shards), first_pixels, 10)))
    assert len(stops_early) == 1
