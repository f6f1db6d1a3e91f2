"""Importing this module imports the libraries that `forked.py` shares among processes.

Python's garbage collector is kept from searching their million objects again and again: the searches take a fifth of
the time of the imports, and in a forked process they copy the memory that these objects are in.
"""

import atexit
import gc
import tempfile
from contextlib import suppress
from importlib import import_module

LIBRARIES = [
    "datasets",
    "open_clip",
    "peft",
    "timm",
    "transformers.models.llama.modeling_llama",
    "transformers.models.llava.modeling_llava",
    "transformers.trainer",
]

gc.disable()
for name in LIBRARIES:
    with suppress(ImportError):  # of an extra that is not installed
        import_module(name)
tempfile.tempdir = None  # a library asked for it; each process has its own $TMPDIR
gc.freeze()
gc.enable()
atexit.register(gc.unfreeze)  # otherwise the binding library of triton reports them as leaked
