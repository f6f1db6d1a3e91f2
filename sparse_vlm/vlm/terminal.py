"""A conversation in the terminal: `sparse-vlm chat` without a question."""

import io
import sys
from contextlib import closing, suppress
from pathlib import Path

from sparse_vlm.errors import UserError
from sparse_vlm.image_files import open_image
from sparse_vlm.vlm.conversation import Conversation

with suppress(ImportError):  # where there is one, input() edits lines and remembers them
    import readline  # noqa: F401

HELP = """\
/image FILE  show an image; the next question is about it
/clear       forget the conversation and its images
/help        this list
/exit        leave; so does Ctrl-D
Ctrl-C stops an answer. Everything else is a question."""


def converse(conversation: Conversation, max_new_tokens: int) -> None:
    """Read questions and commands from standard input until /exit or its end, and print answers as they come.

    Bytes that do not belong to the terminal's encoding become replacement characters.

    Args:
        conversation: goes on where it stands.
        max_new_tokens: where an answer that does not end is cut.
    """
    if sys.stdin is None:  # closed by whoever started us
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
        except KeyboardInterrupt:  # nothing to stop: as a shell does, a new line
            print()
            continue
        if line == "/exit":
            return
        try:
            _obey(conversation, line, max_new_tokens)
        except UserError as error:
            print(f"error: {error}")


def _obey(conversation: Conversation, line: str, max_new_tokens: int) -> None:
    command, _, rest = line.partition(" ")
    if line == "/help":
        print(HELP)
    elif line == "/clear":
        conversation.clear()
        print("Forgotten.")
    elif command == "/image":
        if not rest.strip():
            raise UserError("Which image? /image FILE")
        conversation.show(open_image(Path(rest.strip()).expanduser()))
        print("Seen. What is the question?")
    elif command.startswith("/"):
        raise UserError(f"Unknown command {command}; /help lists them.")
    elif line:
        _answer(conversation, line, max_new_tokens)


def _answer(conversation: Conversation, question: str, max_new_tokens: int) -> None:
    """Prints one answer; Ctrl-C ends it, wherever it comes."""
    try:
        with closing(conversation.ask(question, max_new_tokens)) as pieces:
            for piece in pieces:
                print(piece, end="", flush=True)
    except KeyboardInterrupt:
        print(" [stopped]", end="")
    print()
