"""Conversations in a program and in the terminal. Ctrl-C is a real signal."""

import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sparse_vlm.cli import main
from sparse_vlm.errors import UserError
from sparse_vlm.vlm.chat import answer, encode_messages, user_message
from sparse_vlm.vlm.conversation import Conversation
from tests.forked import wait_for_output
from tests.vlm.conftest import Loaded
from train.forked import fork_python


def say(conversation: Conversation, question: str) -> str:
    return "".join(conversation.ask(question, max_new_tokens=6))


def test_the_whole_conversation_is_the_prompt(vlm: Loaded, images: list[Image.Image]) -> None:
    model, processor = vlm
    conversation = Conversation(*vlm)
    conversation.show(images[0])
    first = say(conversation, "What is it?")
    assert first.strip() == answer(*vlm, images[0], "What is it?", max_new_tokens=6)
    conversation.show(images[1])
    second = say(conversation, "And this?")
    messages = [
        user_message("What is it?", 1),
        {"role": "assistant", "content": first.strip()},
        user_message("And this?", 1),
    ]
    inputs = encode_messages(processor, messages, images[:2])
    ids = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    assert second == processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert second != say(Conversation(*vlm), "And this?")
    conversation.clear()
    assert say(conversation, "And this?") == say(Conversation(*vlm), "And this?")


def test_closing_stops_within_a_token_and_keeps_the_partial_answer(vlm: Loaded) -> None:
    conversation = Conversation(*vlm)
    with closing(conversation.ask("What is it?", max_new_tokens=1500)) as pieces:
        first = next(pieces)
    assert [message["role"] for message in conversation.messages] == ["user", "assistant"]
    assert conversation.messages[1]["content"] == first.strip()


def test_a_refused_question_is_not_kept(vlm: Loaded, images: list[Image.Image]) -> None:
    conversation = Conversation(*vlm)
    for question, length, sentence in [
        ("  ", 6, "The question is empty."),
        ("What?", 0, "--max_new_tokens must be 1 or more, got 0"),
        ("What?", 10**6, "more than the 2048 that the model takes. Begin a new conversation"),
    ]:
        with pytest.raises(UserError, match=sentence):
            list(conversation.ask(question, length))
    assert conversation.messages == []


BOX = (0.25, 0.25, 0.75, 1.0)


def test_visual_tokens_for_all_images_and_regions_for_the_next_question(vlm: Loaded, images: list[Image.Image]) -> None:
    model, processor = vlm
    conversation = Conversation(*vlm, visual_tokens=4)
    conversation.show(images[1])
    conversation.look_at(BOX)
    first = say(conversation, "What is it?")
    assert first.strip() == answer(*vlm, images[1], "What is it?", 6, visual_tokens=4, regions=[BOX])
    conversation.look_at((0.0, 0.0, 1.0, 0.5))  # of the same image
    second = say(conversation, "And this?")
    conversation.show(images[0])
    third = say(conversation, "And here?")
    regions = [(BOX,), ((0.0, 0.0, 1.0, 0.5),), ()]
    turns = [
        turn
        for question, said, count, boxes in zip(
            ["What is it?", "And this?", "And here?"], [first, second, third], [1, 0, 1], regions, strict=True
        )
        for turn in (user_message(question, count, boxes), {"role": "assistant", "content": said.strip()})
    ]
    assert conversation.messages == turns
    for place, said in ((3, second), (5, third)):
        inputs = encode_messages(processor, turns[:place], images[1::-1][: 1 + place // 5], 4)
        ids = model.generate(**inputs, max_new_tokens=6, do_sample=False)
        assert said == processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def test_regions_that_cannot_be_asked_about_are_refused_at_once(vlm: Loaded, images: list[Image.Image]) -> None:
    conversation = Conversation(*vlm)
    with pytest.raises(UserError, match="the conversation has none: attach an image first"):
        conversation.look_at(BOX)
    conversation.show(images[2])  # 50 by 90 pixels, of which the model sees the central square
    for box, sentence in {
        (0.0, 0.0, 1.0, 0.1): "outside the central square",
        (0.5, 0.0, 0.5, 1.0): "lies inside the image",
        (0.0, 0.0, 1.0, 1.5): "lies inside the image",
    }.items():
        with pytest.raises(UserError, match=sentence):
            conversation.look_at(box)
    assert say(conversation, "What?").strip() == answer(*vlm, images[2], "What?", 6)
    conversation.look_at(BOX)
    with pytest.raises(UserError, match="ask it before the next image"):
        conversation.show(images[0])
    conversation.clear()
    assert say(conversation, "What?").strip() == answer(*vlm, None, "What?", 6)


def test_a_conversation_with_too_many_visual_tokens(vlm: Loaded, images: list[Image.Image]) -> None:
    for count, sentence in {0: "at least 1, got 0", 2049: "exceeds the 2048 positions", 2.5: "whole number"}.items():
        with pytest.raises(UserError, match=sentence):
            Conversation(*vlm, visual_tokens=count)  # type: ignore[arg-type]
    conversation = Conversation(*vlm, visual_tokens=2040)
    conversation.show(images[0])
    with pytest.raises(UserError, match=r"more than the 2048 that the model takes\. Ask for fewer visual tokens"):
        say(conversation, "What is shown here?")


def chat(monkeypatch: pytest.MonkeyPatch, vlm_dir: Path, *lines: str, tokens: int = 6, options: list[str] = []) -> int:  # noqa: B006
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    command = ["chat", "--model", str(vlm_dir), "--dtype", "float32", "--max_new_tokens", str(tokens)]
    return main([*command, *options])


def test_in_the_terminal(
    vlm: Loaded,
    vlm_dir: Path,
    images: list[Image.Image],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for number in (0, 1):
        images[number].save(tmp_path / f"{number}.png")
    lines = ["What is it?", "", f"/image {tmp_path}/1.png", "And this?", "/image", "/image gone.png", "/nothing"]
    lines += ["/help", "/clear", "And this?", "/exit", "never asked"]
    assert chat(monkeypatch, vlm_dir, *lines, options=["--image", f"{tmp_path}/0.png"]) == 0
    said = capsys.readouterr().out
    expected, alone = Conversation(*vlm), Conversation(*vlm)
    expected.show(images[0])
    first = say(expected, "What is it?")
    expected.show(images[1])
    second = say(expected, "And this?")
    refused = [
        "error: The file is missing: /image FILE",
        "error: The image gone.png",
        "error: Unknown command /nothing",
    ]
    for part in (first, second, *refused, "Forgotten.", say(alone, "And this?")):
        assert part in said
        said = said[said.index(part) + len(part) :]


def test_visual_tokens_and_regions_in_the_terminal(
    vlm: Loaded,
    vlm_dir: Path,
    images: list[Image.Image],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    images[1].save(tmp_path / "1.png")
    lines = ["What is it?", "/clear", "/region 0,0,1,1", f"/image {tmp_path}/1.png", "/region", "/region 0,0,2,1"]
    lines += ["/region .25,.25,.75,1", "What is it?"]
    options = ["--image", f"{tmp_path}/1.png", "--visual_tokens", "4", "--region", "0,0,.5,.5"]
    assert chat(monkeypatch, vlm_dir, *lines, options=options) == 0
    said = capsys.readouterr().out
    for part in (
        answer(*vlm, images[1], "What is it?", 6, visual_tokens=4, regions=[(0, 0, 0.5, 0.5)]),
        "Forgotten.",
        "error: A region is a part of an image, but the conversation has none",
        "error: A region is a box x1,y1,x2,y2 with [0, 1] from edge to edge, got ''.",
        "error: A box lies inside the image",
        "Region attached.",
        answer(*vlm, images[1], "What is it?", 6, visual_tokens=4, regions=[BOX]),
    ):
        assert part in said
        said = said[said.index(part) + len(part) :]


class Interrupting(io.StringIO):
    """A terminal in which Ctrl-C is pressed at the first piece of the first answer."""

    done = False

    def write(self, text: str) -> int:
        written = super().write(text)
        if "> " in self.getvalue()[:-1] and not self.done and text.strip() not in ("", ">"):
            self.done = True
            signal.raise_signal(signal.SIGINT)
        return written


@pytest.fixture
def working_ctrl_c() -> Iterator[None]:
    """Make Ctrl-C raise KeyboardInterrupt, because a shell ignores the signal for background processes."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("working_ctrl_c")
def test_ctrl_c_stops_an_answer_and_not_the_conversation(vlm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Interrupting()
    monkeypatch.setattr(sys, "stdout", terminal)
    assert chat(monkeypatch, vlm_dir, "What is it?", "/clear", tokens=1500) == 0
    text = terminal.getvalue()
    assert terminal.done
    assert text.index("[stopped]") < text.index("Forgotten.")
    assert len(text) < 300  # 1500 tokens would be thousands of letters


def start_chat(vlm_dir: Path, *options: str, **pipes: Any) -> subprocess.Popen:
    command = [sys.executable, "-m", "sparse_vlm", "chat", "--model", str(vlm_dir), *options]
    return subprocess.Popen(command, stderr=subprocess.PIPE, **pipes)


@pytest.mark.slow
def test_invalid_bytes_do_not_end_the_conversation(vlm_dir: Path) -> None:
    with start_chat(vlm_dir, "--max_new_tokens", "4", stdin=subprocess.PIPE, stdout=subprocess.PIPE) as chatting:
        said, complaints = chatting.communicate(b"caf\xe9?\n\xc4\xe3\xba\xc3\n/clear\n")
    assert chatting.returncode == 0
    assert b"Traceback" not in complaints
    assert b"Forgotten." in said


@pytest.mark.slow
def test_a_closed_pipe_ends_the_command_silently(vlm_dir: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    with start_chat(vlm_dir, "--max_new_tokens", "4", "Why?", stdin=subprocess.DEVNULL, stdout=write) as chatting:
        os.close(write)
        assert b"Traceback" not in chatting.communicate()[1]
    assert chatting.returncode == 128 + signal.SIGPIPE


INTERRUPTIBLE = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # see working_ctrl_c
runpy.run_module("sparse_vlm", run_name="__main__", alter_sys=True)
"""


@pytest.mark.slow
def test_ctrl_c_during_a_single_answer_is_silent(vlm_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(INTERRUPTIBLE)
    words = [str(tmp_path / "program.py"), "chat", "--model", str(vlm_dir), "--max_new_tokens", "1500", "Why?"]
    chatting = fork_python(words, printed=tmp_path / "printed.txt", threads=1)
    wait_for_output(chatting, tmp_path / "printed.txt", ".")
    assert chatting.pid is not None
    os.kill(chatting.pid, signal.SIGINT)
    chatting.join()
    assert "Traceback" not in (tmp_path / "printed.txt").read_text()
    assert chatting.exitcode == 128 + signal.SIGINT


@pytest.mark.slow
def test_a_conversation_without_standard_input_ends_at_once(vlm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert main(["chat", "--model", str(vlm_dir)]) == 0
