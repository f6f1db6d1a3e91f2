"""Interactive chat in the terminal: `sparse-vlm chat` without a question."""

import io
import sys
from collections.abc import Callable, Generator
from contextlib import closing, suppress
from pathlib import Path

from sparse_vlm.errors import UserError
from sparse_vlm.image_files import open_image
from sparse_vlm.vlm.conversation import Conversation
from sparse_vlm.vlm.views import parse_box

with suppress(ImportError):  # where available, it gives input() line editing and a history
    import readline  # noqa: F401

HELP = """\
/image FILE          attach an image to the next question
/video FILE          attach a video to the next question
/region X1,Y1,X2,Y2  look more closely at a box of the last image; [0, 1] from edge to edge
/clear               forget the conversation with its images, videos and regions
/help                show this list
/exit                leave, as does Ctrl-D
Ctrl-C stops an answer. Everything else is a question."""


def converse(conversation: Conversation, max_new_tokens: int) -> None:
    """Read questions and commands from standard input and print answers as they are generated.

    Args:
        conversation: the conversation to continue.
        max_new_tokens: maximum length of an answer.
    """
    read_lines(lambda line: _run_line(conversation, line, max_new_tokens))


def read_lines(run_line: Callable[[str], None]) -> None:
    """Run lines of standard input and print their errors, until /exit or the end of the input.

    Bytes that are invalid in the terminal's encoding become replacement characters.
    """
    if sys.stdin is None:  # closed by the parent process
        return
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    print("/help lists the commands.")
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:  # no answer to stop: a new line, as in a shell
            print()
            continue
        if line == "/exit":
            return
        try:
            run_line(line)
        except UserError as error:
            print(f"error: {error}")


def _run_line(conversation: Conversation, line: str, max_new_tokens: int) -> None:
    command, _, rest = line.partition(" ")
    if line == "/help":
        print(HELP)
    elif line == "/clear":
        conversation.clear()
        print("Forgotten.")
    elif command in ("/image", "/video"):
        if not rest.strip():
            raise UserError(f"The file is missing: {command} FILE")
        file = Path(rest.strip()).expanduser()
        if command == "/image":
            conversation.show(open_image(file))
        else:
            conversation.watch(file)
        print(f"{command[1:].capitalize()} attached. What is the question?")
    elif command == "/region":
        conversation.look_at(parse_box(rest))
        print("Region attached. What is the question?")
    elif command.startswith("/"):
        raise UserError(f"Unknown command {command}; /help lists all commands.")
    elif line:
        print_answer(conversation.ask(line, max_new_tokens))


def print_answer(answer: Generator[str]) -> None:
    """Print the pieces of an answer. Ctrl-C ends it at any point."""
    try:
        with closing(answer) as pieces:
            for piece in pieces:
                print(piece, end="", flush=True)
    except KeyboardInterrupt:
        print(" [stopped]", end="")
    print()
