"""The README.md of a model directory: what it is made of, what it was trained on, under which licences."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparse_vlm.files import write_text

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
