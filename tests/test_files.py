"""Outputs appear complete or not at all, and replace no inputs."""

import json
import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sparse_vlm import files
from sparse_vlm.errors import UserError
from sparse_vlm.files import check_output, check_output_files, exchange, new_directory, new_file, write_json, write_text


def test_text_and_json(tmp_path: Path) -> None:
    write_text(tmp_path / "new" / "a.txt", "é\n")
    assert (tmp_path / "new" / "a.txt").read_text(encoding="utf-8") == "é\n"
    write_json(tmp_path / "a.json", {"name": "é", "values": [1, 2]})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"name": "é", "values": [1, 2]}


def test_a_crash_while_writing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "a.txt", "old")

    def crash(source: object, target: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "old"


def test_a_directory_appears_when_the_block_succeeds(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "out"
    with new_directory(target) as temporary:
        (temporary / "file").write_text("1")
        assert not target.exists()
        assert temporary.parent == target.parent  # on the same file system, so that the move is atomic
    assert (target / "file").read_text() == "1"
    assert [path.name for path in target.parent.iterdir()] == ["out"]
    assert stat.S_IMODE(target.stat().st_mode) == 0o755


@pytest.mark.parametrize("names", [[], ["config.json"]])
def test_an_earlier_result_is_replaced_as_a_whole(names: list[str], tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    for name in names:
        (target / name).write_text("old")
    (tmp_path / "link").symlink_to(target)
    with new_directory(tmp_path / "link") as temporary:
        (temporary / "config.json").write_text("new")
        (temporary / "more").touch()
    assert (target / "config.json").read_text() == "new"
    assert {path.name for path in target.iterdir()} == {"config.json", "more"}
    assert {path.name for path in tmp_path.iterdir()} == {"out", "link"}
    assert (tmp_path / "link").is_symlink()


@pytest.mark.slow
def test_other_files_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So they do in the working directory, which cannot be replaced."""
    (tmp_path / "out" / "photos").mkdir(parents=True)
    (tmp_path / "out" / "photos" / "precious.png").touch()
    (tmp_path / "out" / "config.json").write_text("old")
    monkeypatch.chdir(tmp_path / "out")
    for path in (tmp_path / "out", "."):
        with new_directory(path) as temporary:
            (temporary / "photos").mkdir()
            (temporary / "photos" / "new.png").touch()
            (temporary / "config.json").write_text(str(path))
        assert (tmp_path / "out" / "config.json").read_text() == str(path)
    found = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert found == ["out/config.json", "out/photos/new.png", "out/photos/precious.png"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.slow
def test_weights_of_another_model_are_not_mixed_in(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "other.safetensors").touch()
    with pytest.raises(UserError, match=r"out holds other\.safetensors: it would be loaded"):  # noqa: SIM117
        with new_directory(tmp_path / "out") as temporary:
            (temporary / "model.safetensors").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "other.safetensors"]


@pytest.mark.parametrize("output", [".", "..", "deep/..", "input", "link", "input/.."])
def test_inputs_are_not_replaced(output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("input/part").mkdir(parents=True)
    Path("deep").mkdir()
    Path("link").symlink_to("input")
    with pytest.raises(UserError, match="would replace the input input/part"):
        check_output(output, "hub/name", "input/part")
    check_output("new", "input")
    check_output("hub", "hub/name")


def test_a_directory_that_cannot_be_created_is_an_error() -> None:
    with pytest.raises(UserError, match="Cannot write /proc/deep/model: No such file"):
        check_output("/proc/deep/model")


@pytest.mark.parametrize("existed", [True, False])
def test_a_crash_leaves_the_directory_unchanged(existed: bool, tmp_path: Path) -> None:
    target = tmp_path / "out"
    if existed:
        target.mkdir()
        (target / "old").touch()

    def crash() -> None:
        with new_directory(target) as temporary:
            (temporary / "half").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        crash()
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == (
        ["out", "out/old"] if existed else []
    )


def test_a_directory_does_not_replace_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("precious")
    with pytest.raises(UserError, match=r"is a file\. Choose another name"), new_directory(tmp_path / "out"):
        pass
    assert (tmp_path / "out").read_text() == "precious"


def test_links_are_followed_and_devices_are_written_in_place(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link.txt").symlink_to(tmp_path / "real" / "a.txt")
    write_text(tmp_path / "link.txt", "1")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "real" / "a.txt").read_text() == "1"
    write_text("/dev/null", "nothing")
    assert not Path("/dev/null").is_file()


@pytest.mark.parametrize("path", ["/dev/full", "/proc/x.json", "file/x.json", "folder", f"{'x' * 300}.json"])
def test_a_file_that_cannot_be_written_is_an_error(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("folder").mkdir()
    with pytest.raises(UserError, match=r"^Cannot write "):
        write_text(path, "x" * 100_000)
    assert {name.name for name in tmp_path.rglob("*")} == {"file", "folder"}
    if path != "/dev/full":  # a full disk is noticed only when it is written to
        with pytest.raises(UserError, match=r"^Cannot write --output "):
            check_output_files({"--output": path})
    assert {name.name for name in tmp_path.rglob("*")} == {"file", "folder"}


def test_outputs_replace_neither_each_other_nor_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    Path("data/known.json").touch()
    Path("link.json").symlink_to("data/known.json")
    check_output_files(
        {"--output": "deep/new.json", "--log": None, "--table": "deep/new.md"}, ["data", None, "hub/name"]
    )
    check_output_files({"--output": "data/new.json"}, ["data"])
    assert not Path("deep").exists()
    for outputs in (
        {"--output": "data/known.json"},
        {"--output": "link.json"},
        {"--output": "data/../data/known.json"},
    ):
        for source in ("data", "data/known.json"):
            with pytest.raises(UserError, match="--output would replace the input"):
                check_output_files(outputs, [source])
    with pytest.raises(UserError, match=r"--output and --table are the same file"):
        check_output_files({"--output": "r.md", "--table": "./r.md"})


def test_directories_are_exchanged_atomically(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On Linux nothing is renamed, so no name is missing at any time. Other systems rename."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()

    def refuse(source: object, target: object) -> None:
        raise AssertionError

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        exchange(tmp_path / "a", tmp_path / "b")
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("?/?"))] == ["a/b", "b/a"]

    class WithoutExchange:
        def __init__(self, *unused: object, **options: object) -> None:
            pass

    monkeypatch.setattr(files.ctypes, "CDLL", WithoutExchange)
    exchange(tmp_path / "a", tmp_path / "b")
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("?/?"))] == ["a/a", "b/b"]


@pytest.mark.parametrize(("umask", "file_mode", "directory_mode"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700)])
def test_published_files_follow_the_umask(tmp_path: Path, umask: int, file_mode: int, directory_mode: int) -> None:
    """safetensors creates its files through tempfile, with mode 600."""
    before = os.umask(umask)
    try:
        with new_file(tmp_path / "weights.safetensors") as temporary:
            save_file({"weight": torch.zeros(1)}, temporary)
        with new_directory(tmp_path / "out") as folder:
            (folder / "part").mkdir()
            save_file({"weight": torch.zeros(1)}, folder / "part" / "weights.safetensors")
    finally:
        os.umask(before)
    for file in (tmp_path / "weights.safetensors", tmp_path / "out" / "part" / "weights.safetensors"):
        assert stat.S_IMODE(file.stat().st_mode) == file_mode
    for directory in (tmp_path / "out", tmp_path / "out" / "part"):
        assert stat.S_IMODE(directory.stat().st_mode) == directory_mode
