"""The measurement of servers, with the real server of a tiny model."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from eval.cost.serving import Load, main, section_of
from tests.ports import free_port
from tests.vlm.serving.conftest import Server


@pytest.fixture(scope="module")
def server(vlm_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    pytest.importorskip("fastapi")
    running = Server(vlm_dir, tmp_path_factory.mktemp("serve") / "log")
    try:
        yield running
    finally:
        running.close()


@pytest.mark.slow
def test_the_report(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, url = tmp_path / "serving.json", f"{server.root}/v1"
    sizes = ["--users", "1", "3", "--requests", "4", "--new_tokens", "2", "--repeats", "2"]
    assert main(["--servers", f"one={url}", f"two={url}/", *sizes, "--output", str(output)]) == 0
    report = json.loads(output.read_text())
    assert [(load["server"], load["users"]) for load in report["results"]] == [
        *(("one", 1), ("two", 1)),
        *(("one", 3), ("two", 3)),
    ]
    for load in report["results"]:
        assert len(load["answers"]) == len(load["latencies"]) == 8
        assert len(load["seconds"]) == 2
        assert load["requests_per_second"] == pytest.approx(8 / sum(load["seconds"]))
    assert capsys.readouterr().out.count("8 of 8") == 4
    assert output.with_suffix(".png").exists()


def test_answers_are_compared_with_the_first_servers() -> None:
    loads = [Load("a", 2, [2.0], [0.5, 1.5], ["red", "yes"]), Load("b", 2, [1.0], [0.2, 0.4], ["red", "no"])]
    assert section_of(loads, "title").rows[1:] == [
        ["a", "2", "1.00", "1.00", "2 of 2"],
        ["b", "2", "2.00", "0.30", "1 of 2"],
    ]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--servers", "http://127.0.0.1/v1"], "A server is written NAME=URL"),
        (["--servers", f"none=http://127.0.0.1:{free_port()}/v1"], "The server none does not list its models"),
        (["--servers", "a=http://127.0.0.1/v1", "--users", "0"], "--users must be at least 1, got 0"),
        (["--servers", "a=http://127.0.0.1/v1", "--output", "serving.txt"], "--output must end in .json"),
    ],
)
def test_bad_input(options: list[str], sentence: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["--output", str(tmp_path / "serving.json"), *options]) == 2
    assert sentence in capsys.readouterr().err
