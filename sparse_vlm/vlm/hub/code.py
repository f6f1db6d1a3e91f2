"""The code that a model directory carries for `trust_remote_code=True`.

The code makes the directory open where sparse_vlm is not installed. transformers loads it from files beside
config.json that import each other by `from .name import …`, so the modules that the model and its processor need are
copied under flat names, with those imports rewritten.
"""

import ast
import importlib.util
import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from sparse_vlm.files import write_text

MODELING, PROCESSING = "sparse_vlm.vlm.modeling", "sparse_vlm.vlm.processing"
IMPORT = re.compile(r"^( *)from (sparse_vlm[\w.]*) import (.+)$")


def auto_map(kind: str) -> dict[str, str]:
    """Return the `auto_map` entry of transformers' configuration files. `kind` is "model" or "processor"."""
    if kind == "processor":
        return {"AutoProcessor": f"{_flat(PROCESSING)}.SparseVLMProcessor"}
    classes = {
        "AutoConfig": "SparseVLMConfig",
        "AutoModel": "SparseVLMModel",  # SGLang looks for no other name
        "AutoModelForImageTextToText": "SparseVLMForConditionalGeneration",
        "AutoModelForMultimodalLM": "SparseVLMForConditionalGeneration",
    }
    return {auto: f"{_flat(MODELING)}.{name}" for auto, name in classes.items()}


def write_code(directory: str | Path) -> None:
    """Copy the modules into a model directory. A copy of this module copies the files beside it.

    transformers does so only where it has opened the first model of a process.
    """
    if __name__.startswith("sparse_vlm."):
        files = {f"{_flat(module)}.py": source for module, source in _copies().items()}
    else:
        files = {file.name: file.read_text(encoding="utf-8") for file in Path(__file__).parent.glob("sparse_vlm_*.py")}
    for name, source in files.items():
        write_text(Path(directory) / name, source)


@cache
def _copies() -> Mapping[str, str]:
    """Return the sources of all modules that model and processor need, with rewritten imports."""
    copies: dict[str, str] = {}
    waiting = [MODELING, PROCESSING]
    while waiting:
        module = waiting.pop()
        if module not in copies:
            source = _source(module)
            imports = _imports(source)
            waiting += _needed(imports)
            lines = source.splitlines(keepends=True)
            for node in imports:  # not what looks like one in a text, such as the example in a model card
                lines[node.lineno - 1] = IMPORT.sub(_rewritten, lines[node.lineno - 1])
            copies[module] = "".join(lines)
    return copies


def _source(module: str) -> str:
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).read_text(encoding="utf-8")


def _imports(source: str) -> list[ast.ImportFrom]:
    """Return the imports of modules of sparse_vlm, at the top or inside functions."""
    found = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    return [node for node in found if (node.module or "").partition(".")[0] == "sparse_vlm"]


def _needed(imports: Iterable[ast.ImportFrom]) -> list[str]:
    """Return the modules that these imports name."""
    needed = []
    for node in imports:
        names = [_submodule(str(node.module), alias.name) for alias in node.names]
        needed += [name or str(node.module) for name in names]
    return needed


def _submodule(package: str, name: str) -> str | None:
    """Return the module that `from package import name` imports, or None if `name` is defined inside `package`."""
    spec: Any = importlib.util.find_spec(package)
    if spec.submodule_search_locations is None or not name.isidentifier():
        return None
    return f"{package}.{name}" if importlib.util.find_spec(f"{package}.{name}") else None


def _rewritten(match: re.Match[str]) -> str:
    indent, module, names = match.groups()
    submodule = _submodule(module, names)
    if submodule is None:
        return f"{indent}from .{_flat(module)} import {names}"
    # transformers recognises needed files only by the form of the first line
    flat = _flat(submodule)
    return f"{indent}from .{flat} import __name__ as _{names}\n{indent}from . import {flat} as {names}"


def _flat(module: str) -> str:
    return module.replace(".", "_")
