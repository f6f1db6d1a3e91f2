"""What is known about weights of open_clip: activation and preprocessing from its table, licence from a model card."""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import open_clip
import timm
import yaml
from huggingface_hub import ModelCard

from sparse_vlm.errors import one_line

logger = logging.getLogger(__name__)
PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")  # what open_clip's table of weights says of it


def weights_options(model: str, tag: str) -> dict[str, Any]:
    """Arguments of `open_clip.create_model` that belong to the weights MODEL/TAG: their activation and preprocessing.

    open_clip itself would use the activation of the name MODEL, and only warn where the weights have another one; of a
    file it would not know the tag.
    """
    about: dict[str, Any] = open_clip.get_pretrained_cfg(model, tag)
    preprocessing = {key: about[key] for key in PREPROCESSING}
    return {"force_quick_gelu": bool(about.get("quick_gelu", False)), "force_preprocess_cfg": preprocessing}


def untagged_options(shown: str, model: str) -> dict[str, Any]:
    """The same of weights without a tag: the activation of MODEL, the preprocessing that all its tags agree on.

    Where they do not agree, or there are none, it is open_clip's default; the former is a warning.
    """
    known = [weights_options(model, tag) for tag in open_clip.list_pretrained_tags_by_model(model)]
    choices = [options["force_preprocess_cfg"] for options in known]
    if choices and all(choice == choices[0] for choice in choices):
        return {"force_preprocess_cfg": choices[0]}
    default = asdict(open_clip.transform.PreprocessCfg())
    if choices:
        logger.warning(
            "The weights of %s differ in their preprocessing. Assumed for %s: %s. Write open_clip:%s/TAG@FILE for "
            "that of a tag.",
            model,
            shown,
            ", ".join(f"{key} {default[key]}" for key in PREPROCESSING),
            model,
        )
    return {"force_preprocess_cfg": {key: default[key] for key in PREPROCESSING}}


def licence_of(origin: str | Path) -> str:
    """Licence of weights, "" if unknown: from timm's table, which has its own weights', or from a model card.

    Args:
        origin: a directory, or OWNER/MODEL on the hub and what may follow, as in open_clip's table of weights.
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
        logger.warning(
            "The licence of the teacher's weights is unknown: %s cannot be read (%s).", card, one_line(error)
        )
        return ""
