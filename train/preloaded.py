"""Importing this imports the libraries of the project's commands, without their messages; see `train.forked`.

None of the project's own modules, so that a command behaves as in a fresh interpreter. A library that is missing is an
error in the commands that need it, not here.
"""

import importlib
import os
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


with _discarded_output():
    for name in LIBRARIES:
        with suppress(ImportError):
            importlib.import_module(name)
