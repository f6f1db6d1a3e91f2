"""Importing this imports the libraries of the project's commands, without their messages; see `train.forked`.

None of the project's own modules, so that a command behaves as in a fresh interpreter. A library that is missing is an
error in the commands that need it, not here.

Python's garbage collector is kept from searching their million objects again and again: the searches take a fifth of
the time of the imports, and in a forked process they copy the memory that these objects are in.
"""

import atexit
import gc
import importlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress

LIBRARIES = [
    "datasets",
    "matplotlib.figure",
    "open_clip",
    "peft",
    "timm",
    "transformers.models.llama.modeling_llama",
    "transformers.models.llava.modeling_llava",
    "transformers.trainer",
]


@contextmanager
def _discarded_output() -> Iterator[None]:
    kept = {stream: os.dup(stream) for stream in (1, 2)}
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for stream in kept:
            os.dup2(nowhere, stream)
        yield
    finally:
        for stream, copy in kept.items():
            os.dup2(copy, stream)
            os.close(copy)
        os.close(nowhere)


gc.disable()
with _discarded_output():
    for name in LIBRARIES:
        with suppress(ImportError):
            importlib.import_module(name)
tempfile.tempdir = None  # a library asked for it; each process has its own $TMPDIR
gc.freeze()
gc.enable()
atexit.register(gc.unfreeze)  # otherwise the binding library of triton reports them as leaked
