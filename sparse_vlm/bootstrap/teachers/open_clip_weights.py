"""Weights of open_clip: activation and preprocessing from its table, licence from a model card, OpenAI's files."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import open_clip
import timm
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import save_file

from sparse_vlm.encoder.checkpoints import is_torchscript, read_weights
from sparse_vlm.errors import one_line

logger = logging.getLogger(__name__)
NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size")  # in OpenAI's state dicts
PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")  # in open_clip's table of weights


def weights_options(model: str, tag: str) -> dict[str, Any]:
    """Return arguments of `open_clip.create_model` for the weights MODEL/TAG: activation and preprocessing.

    By default, open_clip uses the activation of MODEL and only warns if the weights were trained with another one. For
    a local file it does not know the tag.
    """
    about: dict[str, Any] = open_clip.get_pretrained_cfg(model, tag)
    preprocessing = {key: about[key] for key in PREPROCESSING}
    return {"force_quick_gelu": bool(about.get("quick_gelu", False)), "force_preprocess_cfg": preprocessing}


def untagged_options(shown: str, model: str) -> dict[str, Any]:
    """Return the same arguments for weights without a tag: MODEL's activation, and the preprocessing of all its tags.

    If the tags differ, the preprocessing is open_clip's default, with a warning. It is also the default without tags.
    """
    known = [weights_options(model, tag) for tag in open_clip.list_pretrained_tags_by_model(model)]
    choices = [options["force_preprocess_cfg"] for options in known]
    if choices and all(choice == choices[0] for choice in choices):
        return {"force_preprocess_cfg": choices[0]}
    default = asdict(open_clip.transform.PreprocessCfg())
    if choices:
        logger.warning(
            "The pretrained weights of %s differ in their preprocessing. Assuming for %s: %s. Write "
            "open_clip:%s/TAG@FILE to use that of a tag.",
            model,
            shown,
            ", ".join(f"{key} {default[key]}" for key in PREPROCESSING),
            model,
        )
    return {"force_preprocess_cfg": {key: default[key] for key in PREPROCESSING}}


@contextmanager
def readable_file(file: Path) -> Iterator[Path]:
    """Give a file that open_clip can read: `file`, or a temporary one in float32 for OpenAI's TorchScript archives."""
    if not is_torchscript(file):
        yield file.absolute()  # open_clip mistakes a relative path for a tag
        return
    # In float32, because open_clip cannot resample float16 position embeddings on a CPU.
    weights = {key: value.float().contiguous() for key, value in read_weights(file).items() if key not in NOT_WEIGHTS}
    with TemporaryDirectory() as folder:
        save_file(weights, Path(folder) / "weights.safetensors")
        yield Path(folder) / "weights.safetensors"


def licence_of(origin: str | Path) -> str:
    """Look up the licence of weights in timm's table or in a model card; "" if unknown.

    Args:
        origin: a directory, or OWNER/MODEL on the hub, possibly followed by a file name, as in open_clip's table.
    """
    if isinstance(origin, Path):
        return _card_licence(origin / "README.md") if (origin / "README.md").is_file() else ""
    owner, _, rest = origin.partition("/")
    model = rest.partition("/")[0]
    if owner == "timm" and timm.is_model_pretrained(model):
        return timm.get_pretrained_cfg_value(model, "license") or ""
    return _card_licence(f"{owner}/{model}") if model else ""


def _card_licence(card: str | Path) -> str:
    try:
        return ModelCard.load(card).data.license or ""
    except (OSError, ValueError, yaml.YAMLError) as error:
        logger.warning("The licence of the teacher's weights is unknown: cannot read %s (%s).", card, one_line(error))
        return ""
