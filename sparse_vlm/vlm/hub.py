"""Files that a model directory carries for the Hugging Face hub: its code, for `trust_remote_code=True`, and its card.

The code makes the directory open where sparse_vlm is not installed. transformers loads it from files beside
config.json that import each other by `from .name import …`, so the modules that the model and its processor need are
copied under flat names, with those imports rewritten.
"""

import ast
import hashlib
import importlib.util
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from sparse_vlm.files import write_text

MODELING, PROCESSING = "sparse_vlm.vlm.modeling", "sparse_vlm.vlm.processing"
IMPORT = re.compile(r"^( *)from (sparse_vlm[\w.]*) import (.+)$", re.MULTILINE)
USAGE = """\
```python
from transformers import AutoModelForImageTextToText, AutoProcessor

# trust_remote_code is not needed where sparse_vlm is installed and imported
model = AutoModelForImageTextToText.from_pretrained("DIR", trust_remote_code=True)
processor = AutoProcessor.from_pretrained("DIR", trust_remote_code=True)
messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is shown?"}]}]
text = processor.apply_chat_template(messages, add_generation_prompt=True)
inputs = processor(text=text, images=image, add_special_tokens=False, return_tensors="pt")
ids = model.generate(**inputs, max_new_tokens=64)
print(processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
```
"""
MARK = "<!-- Saving the model overwrites this file unless it was edited: "
HEAD = """\
---
library_name: transformers
pipeline_tag: image-text-to-text
tags: [sparse_vlm]
---
"""


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
    """Copy the modules into a model directory. A copy of this module leaves that to transformers."""
    if not __name__.startswith("sparse_vlm."):
        return
    for module, source in _copies().items():
        write_text(Path(directory) / f"{_flat(module)}.py", source)


@cache
def _copies() -> Mapping[str, str]:
    """Return the sources of all modules that model and processor need, with rewritten imports."""
    copies: dict[str, str] = {}
    waiting = [MODELING, PROCESSING]
    while waiting:
        module = waiting.pop()
        if module not in copies:
            source = _source(module)
            waiting += _needed(source)
            copies[module] = IMPORT.sub(_rewritten, source)
    return copies


def _source(module: str) -> str:
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).read_text(encoding="utf-8")


def _needed(source: str) -> list[str]:
    """Return the modules of sparse_vlm that a module imports, at the top or inside functions."""
    needed = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "sparse_vlm":
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


def model_card(encoder: Mapping[str, Any], provenance: Mapping[str, Any], tokens: int) -> str:
    """Return the text of the model card. Missing values are reported as not known.

    Args:
        encoder: a SparseFormer's configuration with "teacher" and "licence"; empty for a dense vision tower.
        provenance: see `SparseVLMConfig`.
        tokens: number of visual tokens per image.
    """
    teacher = encoder.get("teacher") or "not known"
    licence = encoder.get("licence") or "not known"
    stages = [f"- {stage['stage']}: {', '.join(stage['data'])}" for stage in provenance.get("stages", [])]
    return "\n".join(
        [
            f"{HEAD}# A vision-language model with {tokens} visual tokens per image",
            "",
            f"- Vision encoder: {'SparseFormer' if encoder else 'a dense ViT'}; teacher: {teacher}; licence of its "
            f"weights: {licence}",
            f"- Language model: {provenance.get('language_model') or 'not known'}; its own licence applies",
            "",
            "## Training data",
            "",
            *(stages or ["None: the projector is untrained."]),
            "",
            "The licences of the training data apply to the trained model.",
            "",
            "## Use",
            "",
            USAGE,
        ]
    )


def write_card(directory: str | Path, card: str) -> None:
    """Write README.md, unless there is one that was edited or not written here, as its last line shows."""
    file = Path(directory) / "README.md"
    if not file.exists() or _is_unedited(file.read_text(encoding="utf-8", errors="replace")):
        write_text(file, f"{card}\n{MARK}{_digest(card)} -->\n")


def _is_unedited(text: str) -> bool:
    card, _, rest = text.rpartition(f"\n{MARK}")
    return bool(rest) and rest == f"{_digest(card)} -->\n"


def _digest(card: str) -> str:
    return hashlib.sha256(card.encode()).hexdigest()[:16]
