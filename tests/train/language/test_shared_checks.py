"""The check of all samples: shared by processes, kept for later runs, and never out of date."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from torchvision.transforms.functional import to_tensor

from sparse_vlm.data.conversations.dataset import ConversationDataset
from sparse_vlm.data.conversations.length_limit import LengthLimit
from sparse_vlm.data.conversations.sources import open_sources
from sparse_vlm.errors import UserError
from sparse_vlm.vlm.language.turns import ChatFormat
from tests.data.conversations.records import record
from tests.forked import run_together
from tests.ports import free_port
from train.language import shared_checks
from train.language.shared_checks import SharedChecks
from train.stages.stage import StageArguments

RECORDS = [
    record("<image>\nQ", "A", image="a.png", id="0"),
    record("<image>\nQ", "A", image="b.png", id="1"),
    record("Q", "A " * 60, image=None, id="long"),
    record("<image>\nQ", "A", image="corrupt.png", id="corrupt"),
    record("Q", "A", id="malformed"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        Image.new("RGB", (8, 8), "red").save(tmp_path / f"{name}.png")
    (tmp_path / "corrupt.png").write_bytes(b"\x89PNG no")
    (tmp_path / "data.json").write_text(json.dumps(RECORDS))
    return tmp_path


@pytest.fixture
def chat(llm_dir: Path) -> ChatFormat:
    return load_chat(llm_dir)


def load_chat(llm_dir: Path) -> ChatFormat:
    from transformers import AutoTokenizer

    from sparse_vlm.vlm.language.control_tokens import add_image_token

    tokenizer: Any = AutoTokenizer.from_pretrained(llm_dir)
    image_token_id = add_image_token(tokenizer)
    return ChatFormat(tokenizer, tokenizer.get_chat_template(), image_token_id, 4)


def opened(folder: Path, chat: ChatFormat, data: str = "data.json", **options: Any) -> ConversationDataset:
    args = StageArguments(output_dir=str(folder / "out"), use_cpu=True, disable_tqdm=True)
    options = {"on_bad_sample": "skip", "limit": LengthLimit(50), **options}
    checks = SharedChecks(args, str(folder / data), {"size": options.pop("size", 8)})
    return ConversationDataset(open_sources(folder / data, folder), chat, to_tensor, checks=checks, **options)


def kept(data: ConversationDataset) -> list[tuple[str, int | None, int | None]]:
    return [(entry.sample.id, entry.length, entry.full_length) for entry in data.entries]


def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that fills with the names of the images that are read from now on."""
    from sparse_vlm.data.conversations.images import FolderImages

    names: list[str] = []
    whole = FolderImages.open

    def noted(self: FolderImages, name: str) -> Image.Image:
        names.append(name)
        return whole(self, name)

    monkeypatch.setattr(FolderImages, "open", noted)
    return names


def test_a_later_run_reads_only_what_has_changed(
    folder: Path, chat: ChatFormat, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(shared_checks, "KEPT_FROM", 0)
    caplog.set_level(logging.INFO, "train")
    names = read(monkeypatch)
    first = opened(folder, chat)
    assert sorted(names) == ["a.png", "b.png", "corrupt.png"]
    (file,) = (folder / "data.json.checked").iterdir()
    assert f"Later runs find this check in {file}" in caplog.text
    names.clear()
    again = opened(folder, chat)
    assert names == []
    assert (again.skipped, kept(again)) == (first.skipped, kept(first))
    assert [reason.split()[1].rstrip(":") for reason in again.skipped] == ["long", "corrupt", "malformed"]

    shutil.copy(folder / "a.png", folder / "corrupt.png")  # repaired
    (folder / "b.png").write_bytes(b"\x89PNG no")  # damaged
    changed = opened(folder, chat)
    assert sorted(names) == ["b.png", "corrupt.png"]
    assert [entry.sample.id for entry in changed.entries] == ["0", "corrupt"]

    names.clear()
    (folder / "data.json").write_text(json.dumps([record("<image>\nQ", "B", image="a.png", id="0"), *RECORDS[1:]]))
    opened(folder, chat)
    assert names == ["a.png"]


@pytest.mark.parametrize(
    "other",
    [{"limit": LengthLimit(49)}, {"limit": LengthLimit(50, "truncate")}, {"independent_turns": True}, {"size": 9}],
)
def test_other_rules_check_again(
    folder: Path, chat: ChatFormat, monkeypatch: pytest.MonkeyPatch, other: dict[str, Any]
) -> None:
    monkeypatch.setattr(shared_checks, "KEPT_FROM", 0)
    opened(folder, chat)
    names = read(monkeypatch)
    opened(folder, chat, **other)
    assert len(names) == 3


def test_quick_checks_leave_no_file(folder: Path, chat: ChatFormat) -> None:
    opened(folder, chat)
    assert not (folder / "data.json.checked").exists()
    assert not (folder / "out").exists()


def test_a_folder_that_cannot_be_written_leaves_the_file_to_the_output(
    folder: Path, chat: ChatFormat, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(shared_checks, "KEPT_FROM", 0)
    (folder / "data.json.checked").write_text("")  # a file: not even root can write below it
    opened(folder, chat)
    assert "Cannot write" in caplog.text
    (file,) = (folder / "out" / "data.json.checked").iterdir()
    names = read(monkeypatch)
    opened(folder, chat)
    assert names == []
    file.write_text("{}")
    with pytest.raises(UserError, match=r"is not what an earlier run has written\. Remove it"):
        opened(folder, chat)


PROGRAM = """
import sys, torch
from pathlib import Path
from sparse_vlm.errors import UserError
from tests.train.language.test_shared_checks import kept, load_chat, opened, read
from train.language import shared_checks
from train.language.word_start import LeastSquares
from train.stages.processes import share
from train.stages.stage import StageArguments
import pytest

shared_checks.KEPT_FROM = 0
folder, chat = Path(sys.argv[1]), load_chat(Path(sys.argv[2]))
args = StageArguments(output_dir=str(folder / "out"), use_cpu=True)
assert args.world_size == 2
with pytest.MonkeyPatch.context() as patch:
    names = read(patch)
    data = opened(folder, chat)
    print("read", *sorted(names))
    torch.distributed.barrier()
    names.clear()
    assert kept(opened(folder, chat)) == kept(data)
    assert names == [], names
print("good", *(entry.sample.id for entry in data.entries))
print("skipped", *(reason.split()[1].rstrip(":") for reason in data.skipped))
with pytest.raises(UserError, match="^Sample long has"):  # it is in the first process' share, "malformed" too
    opened(folder, chat, on_bad_sample="error")

features = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
targets = features @ torch.ones(6, 3)
alone, shared = LeastSquares(6, 3), LeastSquares(6, 3)
alone.add(features, targets)
rows = list(share(range(50), args))
shared.add(features[rows], targets[rows])
shared.add_processes(args)
for ours, whole in zip(shared.solve(1e-9), alone.solve(1e-9)):
    torch.testing.assert_close(torch.as_tensor(ours), torch.as_tensor(whole), rtol=1e-10, atol=1e-10)
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_share_the_work_and_agree(folder: Path, llm_dir: Path, chat: ChatFormat) -> None:
    program, printed = folder / "program.py", folder / "printed.txt"
    program.write_text(PROGRAM)
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
    run_together([str(program), str(folder), str(llm_dir)], ranks, printed)
    outputs = [file.read_text() for file in (printed, printed.with_suffix(".1.txt"))]
    lines_of = [[line.split() for line in text.splitlines() if line.strip()] for text in outputs]
    found = [[words for words in lines if words[0] in ("read", "good", "skipped")] for lines in lines_of]
    assert [lines[0] for lines in found] == [["read", "a.png"], ["read", "b.png", "corrupt.png"]]
    alone = opened(folder, chat)
    for lines in found:
        assert lines[1] == ["good", *(entry.sample.id for entry in alone.entries)]
        assert lines[2] == ["skipped", *(reason.split()[1].rstrip(":") for reason in alone.skipped)]
