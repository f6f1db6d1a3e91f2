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
MARK = "<!-- Saving the model writes this file anew unless it was edited: "
HEAD = """\
---
library_name: transformers
pipeline_tag: image-text-to-text
tags: [sparse_vlm]
---
"""


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


def model_card(encoder: Mapping[str, Any], provenance: Mapping[str, Any], tokens: int) -> str:
    """The card's text; what is not known is said to be so.

    Args:
        encoder: a SparseFormer's configuration with "teacher" and "licence"; empty for another vision tower.
        provenance: see `SparseVLMConfig`.
        tokens: visual tokens of a picture.
    """
    teacher = encoder.get("teacher") or "not known"
    licence = encoder.get("licence") or "not known"
    stages = [f"- {stage['stage']}: {', '.join(stage['data'])}" for stage in provenance.get("stages", [])]
    return "\n".join(
        [
            f"{HEAD}# A vision-language model with {tokens} visual tokens per picture",
            "",
            f"- Vision encoder: {'SparseFormer' if encoder else 'a dense ViT'}; teacher: {teacher}; licence of its "
            f"weights: {licence}",
            f"- Language model: {provenance.get('language_model') or 'not known'}; its own licence holds",
            "",
            "## Training data",
            "",
            *(stages or ["None: the projector is untrained."]),
            "",
            "The licences of the data hold for what is trained on them.",
            "",
            "## Use",
            "",
            USAGE,
        ]
    )


def write_card(directory: str | Path, card: str) -> None:
    """Write README.md, unless there is one that somebody else wrote or edited: its last line tells."""
    file = Path(directory) / "README.md"
    if not file.exists() or _is_unedited(file.read_text(encoding="utf-8", errors="replace")):
        write_text(file, f"{card}\n{MARK}{_digest(card)} -->\n")


def _is_unedited(text: str) -> bool:
    card, _, rest = text.rpartition(f"\n{MARK}")
    return bool(rest) and rest == f"{_digest(card)} -->\n"


def _digest(card: str) -> str:
    return hashlib.sha256(card.encode()).hexdigest()[:16]
