"""A model directory that opens where sparse_vlm is not installed: its code travels along, for `trust_remote_code=True`.

transformers loads such code from files beside config.json that import each other by `from .name import …`. So the
modules that the model and its processor need are copied under flat names, with those imports rewritten.
"""

import ast
import importlib.util
import re
from pathlib import Path
from typing import Any

from sparse_vlm.files import write_text

MODELING, PROCESSING = "sparse_vlm.vlm.modeling", "sparse_vlm.vlm.processing"
IMPORT = re.compile(r"^( *)from (sparse_vlm[\w.]*) import (.+)$", re.MULTILINE)


def auto_map(kind: str) -> dict[str, str]:
    """What transformers' configuration files say about the code: `kind` is "model" or "processor"."""
    if kind == "processor":
        return {"AutoProcessor": f"{_flat(PROCESSING)}.SparseVLMProcessor"}
    classes = {
        "AutoConfig": "SparseVLMConfig",
        "AutoModelForImageTextToText": "SparseVLMForConditionalGeneration",
        "AutoModelForMultimodalLM": "SparseVLMForConditionalGeneration",
    }
    return {auto: f"{_flat(MODELING)}.{name}" for auto, name in classes.items()}


def write_code(directory: str | Path) -> None:
    """Copies the modules into a model directory. Where they are such a copy themselves, transformers copies them."""
    if not __name__.startswith("sparse_vlm."):
        return
    waiting, done = [MODELING, PROCESSING], set[str]()
    while waiting:
        module = waiting.pop()
        if module in done:
            continue
        done.add(module)
        source = _source(module)
        waiting += _needed(source)
        write_text(Path(directory) / f"{_flat(module)}.py", IMPORT.sub(_rewritten, source))


def _source(module: str) -> str:
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).read_text(encoding="utf-8")


def _needed(source: str) -> list[str]:
    """The modules of ours that a module imports, wherever it does."""
    needed = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "sparse_vlm":
            names = [_submodule(str(node.module), alias.name) for alias in node.names]
            needed += [name or str(node.module) for name in names]
    return needed


def _submodule(package: str, name: str) -> str | None:
    """The module that `from package import name` gives, None if it gives something inside `package`."""
    spec: Any = importlib.util.find_spec(package)
    if spec.submodule_search_locations is None or not name.isidentifier():
        return None
    return f"{package}.{name}" if importlib.util.find_spec(f"{package}.{name}") else None


def _rewritten(match: re.Match[str]) -> str:
    indent, module, names = match.groups()
    submodule = _submodule(module, names)
    if submodule is None:
        return f"{indent}from .{_flat(module)} import {names}"
    # The first line is for transformers, which looks for the needed files by this form alone.
    flat = _flat(submodule)
    return f"{indent}from .{flat} import __name__ as _{names}\n{indent}from . import {flat} as {names}"


def _flat(module: str) -> str:
    return module.replace(".", "_")
