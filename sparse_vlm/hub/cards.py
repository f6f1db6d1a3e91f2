"""Model cards (README.md) of encoder directories and model directories. They state what is known, and nothing else."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparse_vlm.errors import UserError, one_line
from sparse_vlm.files import read_object, write_text

CARD = "README.md"
MARK = "<!-- Saving the model overwrites this file unless it was edited: "
UNKNOWN = "not known"
# Identifiers that the hub accepts under `license`; other licences stand in the text alone.
LICENCES = ("apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0", "cc-by-nc-4.0", "cc-by-sa-4.0", "cc-by-nc-sa-4.0")
VLM_USAGE = """\
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
ENCODER_USAGE = """\
```python
from sparse_vlm.encoder import SparseFormer

encoder = SparseFormer.from_pretrained("DIR")
output = encoder(encoder.transform(image)[None])  # output.tokens, output.pooled, output.rois
```
"""
CLIP_ENCODER_USAGE = """\
```python
import torch
from sparse_vlm.encoder.video.clips import VideoSparseFormer

encoder = VideoSparseFormer.from_pretrained("DIR")
clip = torch.stack([encoder.transform(frame) for frame in frames])
output = encoder(clip[None])  # output.tokens, output.pooled, output.rois
```
"""


def model_card(
    encoder: Mapping[str, Any],
    provenance: Mapping[str, Any],
    tokens: int,
    *,
    tags: Sequence[str] = (),
    reports: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Return the text of a VLM's card. Missing values are reported as not known.

    Args:
        encoder: a SparseFormer's configuration with "teacher" and "licence"; empty for a dense vision tower.
        provenance: see `SparseVLMConfig`.
        tokens: number of visual tokens per image.
        tags: more tags for the hub, e.g. those of a training program.
        reports: reports of `python -m eval.score`.
    """
    language_model = provenance.get("language_model") or UNKNOWN
    licence = provenance.get("language_model_licence")
    front: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "image-text-to-text"}
    if language_model.count("/") == 1:
        front["base_model"] = language_model
    stages = [f"- {stage['stage']}: {', '.join(stage['data'])}" for stage in provenance.get("stages", [])]
    lines = [
        f"# A vision-language model with {tokens} visual tokens per image",
        "",
        f"- Vision encoder: {'SparseFormer' if encoder else 'a dense ViT'}; {_origin(encoder)}",
        f"- Language model: {language_model}; " + (f"its licence: {licence}" if licence else "its own licence applies"),
        "",
        "## Training data",
        "",
        *(stages or ["None: the projector is untrained."]),
        "",
        "The licences of the training data apply to the trained model.",
    ]
    return _card(front, tags, lines, reports, VLM_USAGE)


def encoder_card(
    config: Mapping[str, Any], reports: Sequence[Mapping[str, Any]] = (), *, of_clips: bool = False
) -> str:
    """Return the text of an encoder's card.

    Args:
        config: the encoder's configuration, as in config.json.
        reports: reports of `python -m eval.score`.
        of_clips: whether it is an encoder of clips, not of images.
    """
    front: dict[str, Any] = {"library_name": "sparse_vlm"}
    if not of_clips:  # the hub has no name for features of videos
        front["pipeline_tag"] = "image-feature-extraction"
    if config["licence"] in LICENCES:
        front["license"] = config["licence"]
    cortex, data = config["cortex"], config["preprocessing"]
    counts = config["trained_tokens"] or config["focus"]["tokens"]
    input_ = "clip" if of_clips else "image"
    lines = [
        f"# A SparseFormer encoder with {config['focus']['tokens']} latent tokens per {input_}",
        "",
        f"- {_origin(config)[0].upper()}{_origin(config)[1:]}",
        f"- Cortex: {cortex['depth']} blocks of width {cortex['width']} ({cortex['architecture']})",
        f"- Trained for these numbers of latent tokens: {counts}",
        f"- {'Frames' if of_clips else 'Images'}: {data['crop']} × {data['crop']} pixels",
    ]
    return _card(front, (), lines, reports, CLIP_ENCODER_USAGE if of_clips else ENCODER_USAGE)


def _origin(encoder: Mapping[str, Any]) -> str:
    return f"teacher: {encoder.get('teacher') or UNKNOWN}; licence of its weights: {encoder.get('licence') or UNKNOWN}"


def _card(
    front: Mapping[str, Any],
    tags: Sequence[str],
    lines: Sequence[str],
    reports: Sequence[Mapping[str, Any]],
    usage: str,
) -> str:
    """Join the metadata in YAML, which the hub reads, and the sections."""
    head = [*(f"{name}: {value}" for name, value in front.items()), f"tags: [{', '.join(['sparse_vlm', *tags])}]"]
    measured = ["", "## Measured", "", *(line for report in reports for line in _measured(report))] if reports else []
    return "\n".join(["---", *head, "---", *lines, *measured, "", "## Use", "", usage])


def _measured(report: Mapping[str, Any]) -> list[str]:
    """Return a line for each number of a benchmark's report, and its protocol."""
    lines = []
    try:
        factor, unit = (100, " %") if report["scale"] == "share" else (1, "")
        for name, value in report["scores"].items():
            if isinstance(value, dict):  # the parts of another number
                continue
            low, high = (factor * end for end in report["confidence_95"][name])
            number = f"{factor * value:.1f}{unit} (95 % interval: {low:.1f} to {high:.1f})"
            blind = (report["floors"].get("no_image") or {}).get(name)
            floor = "" if blind is None else f"; without the images {factor * blind:.1f}{unit}"
            asked = f"{report['questions']:,} questions"
            lines.append(
                f"- {report['benchmark']}, {name}: {number} on {asked}{floor}; answers of {report['model_id']}"
            )
        return [*lines, f"- Protocol of {report['benchmark']}: {report['protocol']}"]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"This is not a report of `python -m eval.score`: {one_line(error)}.") from error


def read_reports(files: Sequence[str | Path]) -> list[dict[str, Any]]:
    """Read reports of `python -m eval.score`.

    Raises:
        UserError: a file is not such a report.
    """
    reports = []
    for file in files:
        report = read_object(file)
        try:
            _measured(report)
        except UserError as error:
            raise UserError(f"{file}: {error}") from error
        reports.append(report)
    return reports


def licence_in(directory: str | Path) -> str:
    """Return the `license` in the metadata of a directory's README.md; "" if there is none."""
    file = Path(directory) / CARD
    if not file.is_file():
        return ""
    front = re.match(r"\ufeff?---\s*\n(.*?)\n---", file.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    found = re.search(r"""^license:\s*["']?([\w.+-]+)""", front[1], re.MULTILINE) if front else None
    return found[1] if found else ""


def write_card(directory: str | Path, card: str) -> None:
    """Write README.md, unless there is one that was edited or not written here, as its last line shows."""
    if not has_own_card(directory):
        write_text(Path(directory) / CARD, signed(card))


def has_own_card(directory: str | Path) -> bool:
    """Return whether a directory has a README.md that was edited or not written here."""
    file = Path(directory) / CARD
    return file.exists() and not is_unedited(file.read_text(encoding="utf-8", errors="replace"))


def signed(card: str) -> str:
    """Return a card with a last line from which `is_unedited` recognizes it."""
    return f"{card}\n{MARK}{_digest(card)} -->\n"


def is_unedited(text: str) -> bool:
    """Return whether a README.md is as `signed` made it."""
    card, _, rest = text.rpartition(f"\n{MARK}")
    return bool(rest) and rest == f"{_digest(card)} -->\n"


def _digest(card: str) -> str:
    return hashlib.sha256(card.encode()).hexdigest()[:16]
