"""A program `python` that forks from the process that has the libraries, for scripts and launchers that call python.

It takes `[-u] -m MODULE …` and `[-u] FILE …`. In the processes that it starts, `sys.executable` is the same program.
"""

import os
import runpy
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, Listener, wait
from pathlib import Path
from typing import Any

from train.forked import fork_python

CLIENT = """\
#!{python} -IS
import os, sys
from multiprocessing.connection import Client

with Client({address!r}) as server:
    server.send((sys.argv[1:], dict(os.environ), os.getcwd(), os.getpid()))
    sys.exit(server.recv())
"""


@contextmanager
def forking_python(folder: Path) -> Iterator[Path]:
    """Write the program to `folder`, which must have a short path, and yield its path. It works inside the block."""
    program, address = folder / "python", str(folder / "socket")
    program.write_text(CLIENT.format(python=os.path.realpath(sys.executable), address=address))
    program.chmod(0o700)
    with Listener(address) as listener:
        threading.Thread(target=_serve, args=(listener, program), daemon=True).start()
        yield program


def _serve(listener: Listener, program: Path) -> None:
    while True:
        try:
            connection: Any = listener.accept()
        except OSError:  # closed
            return
        threading.Thread(target=_answer, args=(connection, program), daemon=True).start()


def _answer(connection: Connection, program: Path) -> None:
    """Run what a client asks for, with the client's environment and output, and send the exit status."""
    words, environment, folder, client = connection.recv()
    assert folder == os.getcwd(), "forked processes start in the folder of the tests"
    words = words[1:] if words[0] == "-u" else words
    printed = Path(f"/proc/{client}/fd/1")
    process = fork_python(["-m", __name__, str(program), *words], environment, printed, threads=1)
    with connection:
        if connection in wait([process.sentinel, connection]):  # the client was stopped
            process.kill()
            return
        process.join()
        connection.send(process.exitcode)


def _run(program: str, *words: str) -> None:
    sys.executable = program
    if words[0] == "-m":
        sys.argv = list(words[1:])
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(words)
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    _run(*sys.argv[1:])
