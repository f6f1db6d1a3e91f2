"""Weights on disk: encoder directories, and the authors' released layouts as key maps. Loading is always strict."""

import argparse
import logging
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sparse_vlm.encoder.config import SparseFormerConfig
from sparse_vlm.encoder.rois import from_center_size
from sparse_vlm.errors import UserError
from sparse_vlm.files import new_directory, read_object, write_json
from sparse_vlm.hub.cards import encoder_card, has_own_card, write_card
from sparse_vlm.hub.transfer import local_directory

logger = logging.getLogger(__name__)
Weights = Mapping[str, Tensor]
Rule = tuple[str, str | Callable[[re.Match[str]], str]]

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
IMAGE_ENCODER, CLIP_ENCODER = "sparseformer", "video_sparseformer"  # model_type in config.json

# Where training programs keep the state dict in their checkpoints. The first of these that exists is opened,
# repeatedly. A moving average is preferred to the weights that it averages, as in timm; DINO's teacher averages its
# student.
WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model", "teacher", "module")
# Prefixes that wrappers (DataParallel, torch.compile, Lightning, DINO, this project's stages) add to every name.
PREFIXES = ("module.", "_orig_mod.", "model.", "student.", "teacher.", "backbone.")
# If some names start with the key, those that match the value are only needed to train DINO: student and losses next to
# the teacher, heads next to the backbone.
TRAINING_ONLY = {"teacher.": r"(student|\w+_loss)\.", "backbone.": r"(dino|ibot)_head\."}
HARMLESS: list[Any] = [argparse.Namespace]  # timm's and DINO's scripts save their arguments with the weights

# Older layouts -> "v2" (the authors' current names). Every rule whose pattern matches is applied, in order.
OLD_TO_V2: list[Rule] = [
    (r"^token_roi\.", "initial_roi."),
    (r"^token_embedding\.", "initial_embedding."),
    (r"^global_embedding\.", "cls_embedding."),
    (r"^(ln_post|head\.norm)\.", "norm."),
    (r"^(cls_head|head\.classifier)\.", "proj."),
    (r"^(layers\.\d+)\.ln_attn\.", r"\1.norm1."),
    (r"^(layers\.\d+)\.ffn\.0\.", r"\1.norm2."),
    (r"^(layers\.\d+)\.ffn\.1\.", r"\1.mlp.fc1."),
    (r"^(layers\.\d+)\.ffn\.3\.", r"\1.mlp.fc2."),
    (r"^(layers\.\d+)\.attn\.in_proj_", r"\1.attn.qkv."),
    (r"^(layers\.\d+)\.attn\.out_proj\.", r"\1.attn.proj."),
    (r"\.tuo_proj\.", ".out_proj."),
]
# Keys of the authors' layouts that are not weights of the model.
DROPPED = r"^global_roi(\.|$)"

# "v2" -> ours. layers.0 is the repeated unit, layers.1 the transition, layers.2 the last unit, layers.3+ the cortex.
V2_TO_OURS: list[Rule] = [
    (r"^feat_extractor\.conv1\.", "stem.conv."),
    (r"^initial_roi\.weight$", "focus.initial_rois.weight"),
    (r"^initial_embedding\.weight$", "focus.initial_embedding"),
    (r"^cls_embedding\.weight$", "cortex.cls_embedding"),
    (r"^proj\.", "cortex.trunk.head."),
    (r"^layers\.0\.", "focus.repeated_unit."),
    (r"^layers\.1\.", "focus.transition."),
    (r"^layers\.2\.", "focus.last_unit."),
    (r"^(focus\.\w+)\.adaptive_mixing\.", r"\1.sampling.mixing."),
    (r"\.mixing\.parameter_generator\.0\.", ".mixing.norm."),
    (r"\.mixing\.parameter_generator\.1\.", ".mixing.squeeze."),
    (r"\.mixing\.parameter_generator\.2\.", ".mixing.generate."),
    (r"^(focus\.\w+)\.roi_offset_module\.0\.", r"\1.sampling.points.norm."),
    (r"^(focus\.\w+)\.roi_offset_module\.1\.", r"\1.sampling.points.linear."),
    (r"^(focus\.\w+)\.roi_offset_bias$", r"\1.sampling.points.base"),
    (r"^(focus\.\w+)\.pe_transition\.0\.", r"\1.encoding.norm."),
    (r"^(focus\.\w+)\.pe_transition\.1\.", r"\1.encoding.linear."),
    (r"^(focus\.\w+)\.stage_embedding\.weight$", r"\1.stage_embedding"),
    (r"^(focus\.\w+)\.(attn|mlp|norm1|norm2)\.", r"\1.block.\2."),
    (r"^blocks\.(\d+)\.", r"cortex.trunk.blocks.\1."),
]
# The last Linear of the adjustment has index 1 in v1, and index 3 in the bootstrapped models, after a hidden Linear.
ADJUSTMENT_TO_OURS: dict[str, list[Rule]] = {
    "v1": [(r"\.roi_adjust_module\.0\.", ".adjustment.norm."), (r"\.roi_adjust_module\.1\.", ".adjustment.linear.")],
    "bootstrapped": [
        (r"\.roi_adjust_module\.0\.", ".adjustment.norm."),
        (r"\.roi_adjust_module\.1\.", ".adjustment.hidden."),
        (r"\.roi_adjust_module\.3\.", ".adjustment.linear."),
    ],
}


def convert_released(weights: Weights, config: SparseFormerConfig) -> dict[str, Tensor]:
    """Rename the authors' state dict, in any of their layouts, to our names.

    Unknown keys are kept, so that a strict load reports them.

    Args:
        weights: state dict as released, any floating-point dtype.
        config: configuration of the variant. It decides the name of the final norm (timm's `fc_norm` if pooling comes
            first).
    """
    renamed = _rename_all({key: value for key, value in weights.items() if not re.search(DROPPED, key)}, OLD_TO_V2)
    center, size = "token_roi_cc.weight", "token_roi_wh.weight"
    if center in renamed and size in renamed and "initial_roi.weight" not in renamed:
        shapes = {tuple(renamed[key].shape) for key in (center, size)}
        if len(shapes) > 1 or {shape[1:] for shape in shapes} != {(2,)}:
            raise UserError(f"{center} and {size} must both be float[tokens, 2], got {[*map(list, shapes)]}.")
        renamed["initial_roi.weight"] = from_center_size(renamed.pop(center).float(), renamed.pop(size).float())
    pools_first = bool(config.cortex.options.get("fc_norm", False))
    final_norm: Rule = (r"^norm\.", "cortex.trunk.fc_norm." if pools_first else "cortex.trunk.norm.")
    cortex: Rule = (r"^layers\.(\d+)\.", lambda match: f"cortex.trunk.blocks.{int(match[1]) - 3}.")
    rules = [*V2_TO_OURS, *ADJUSTMENT_TO_OURS[config.focus.generation], final_norm, cortex]
    return _rename_all(renamed, rules)


def _rename_all(weights: Weights, rules: Sequence[Rule]) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    origins: dict[str, str] = {}
    for key, value in weights.items():
        name = key
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        if name in renamed:
            raise UserError(f"The checkpoint contains a weight twice: {origins[name]} and {key} both map to {name}.")
        renamed[name], origins[name] = value, key
    return renamed


def read_weights(file: str | Path) -> dict[str, Tensor]:
    """Read the state dict of a .safetensors or .pth file, or of a TorchScript archive, as OpenAI publishes CLIP.

    No Python code in the file is run; archives are opened by TorchScript's own reader. The wrapping that training
    programs add is removed: see `WRAPPERS`, `PREFIXES` and `TRAINING_ONLY`.

    Raises:
        UserError: the file is missing, unreadable, or does not contain a state dict.
    """
    file = Path(file)
    if not file.is_file():
        raise UserError(f"There is no checkpoint file {file}.")
    content: Any
    try:
        if file.suffix == ".safetensors":
            content = load_file(file)
        elif is_torchscript(file):
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "`torch.jit.load`", FutureWarning)  # torch has no other reader
                content = torch.jit.load(file, "cpu").state_dict()
        else:
            with torch.serialization.safe_globals(HARMLESS):
                content = torch.load(file, "cpu", weights_only=True)
    except Exception as error:  # torch's unpickler can raise almost anything for a damaged file
        raise UserError(
            f"{file} cannot be read as a checkpoint ({type(error).__name__}): it is damaged, or contains more than "
            "tensors. Download it again, or save only its state dict."
        ) from error
    while isinstance(content, dict) and (names := [name for name in WRAPPERS if isinstance(content.get(name), dict)]):
        if len(names) > 1:
            logger.warning("%s contains %s: using %s.", file, " and ".join(names), names[0])
        content = content[names[0]]
    pairs = content.items() if isinstance(content, dict) else [(None, None)]
    if not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in pairs):
        known = ", ".join(f'"{name}"' for name in WRAPPERS)
        raise UserError(f"{file} does not contain a state dict (tensors by name, possibly under one of {known}).")
    return _without_prefixes(content)


def is_torchscript(file: Path) -> bool:
    """Whether `file` is a TorchScript archive."""
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _without_prefixes(weights: Weights) -> dict[str, Tensor]:
    """Remove wrapper prefixes and training-only weights from the names."""
    for prefix, beside in TRAINING_ONLY.items():
        if any(key.startswith(prefix) for key in weights):
            weights = {key: value for key, value in weights.items() if not re.match(beside, key)}
    for prefix in PREFIXES:
        if weights and all(key.startswith(prefix) for key in weights):
            return _without_prefixes({key.removeprefix(prefix): value for key, value in weights.items()})
    return dict(weights)


def load_strictly(module: nn.Module, weights: Weights, source: str) -> None:
    """Load `weights` into `module`, which keeps its dtypes.

    Args:
        module: module to load into.
        weights: state dict with the module's names.
        source: origin of the weights, for the error message.

    Raises:
        UserError: keys are missing or unknown, or shapes differ. The message lists all of them.
    """
    own = module.state_dict()
    problems = []
    if missing := sorted(own.keys() - weights.keys()):
        problems.append(f"missing: {', '.join(missing)}")
    if unknown := sorted(weights.keys() - own.keys()):
        problems.append(f"unknown: {', '.join(unknown)}")
    shapes = [
        f"{key} is {list(weights[key].shape)}, expected {list(own[key].shape)}"
        for key in sorted(own.keys() & weights.keys())
        if own[key].shape != weights[key].shape
    ]
    if shapes:
        problems.append(f"shapes: {'; '.join(shapes)}")
    if problems:
        raise UserError(f"The weights of {source} do not fit ({' | '.join(problems)}). Is it another variant?")
    module.load_state_dict(weights)


def save_directory(
    directory: str | Path, config: SparseFormerConfig, weights: Weights, model_type: str = IMAGE_ENCODER
) -> None:
    """Write config.json, model.safetensors and a model card to a directory, atomically.

    An existing README.md that was edited or comes from elsewhere is kept.
    """
    with new_directory(directory) as temporary:
        if not has_own_card(directory):
            write_card(temporary, encoder_card(config.to_dict(), of_clips=model_type == CLIP_ENCODER))
        write_json(temporary / CONFIG_FILE, {"model_type": model_type, **config.to_dict()})
        contiguous = {key: value.contiguous() for key, value in weights.items()}
        save_file(contiguous, temporary / WEIGHTS_FILE, metadata={"format": "pt"})


def _require_files(directory: Path, *names: str) -> None:
    if not directory.is_dir():
        raise UserError(f"There is no encoder directory {directory}.")
    for name in names:
        if not (directory / name).is_file():
            raise UserError(f"{directory} is not an encoder directory: it has no {name}.")


def load_config(directory: str | Path, model_type: str = IMAGE_ENCODER) -> SparseFormerConfig:
    """Read the configuration of an encoder directory of the given type, or of OWNER/NAME on the hub."""
    directory = local_directory(directory, CONFIG_FILE)
    _require_files(directory, CONFIG_FILE)
    values = read_object(directory / CONFIG_FILE)
    kind = values.pop("model_type", None)
    if kind != model_type:
        wanted = "a SparseFormer encoder" if model_type == IMAGE_ENCODER else f"one of type {model_type!r}"
        raise UserError(f"{directory} contains a model of type {kind!r}, not {wanted}.")
    return SparseFormerConfig.from_dict(values)


def load_directory(
    directory: str | Path, model_type: str = IMAGE_ENCODER
) -> tuple[SparseFormerConfig, dict[str, Tensor]]:
    """Read the configuration and the weights of an encoder directory of the given type, or of OWNER/NAME on the hub."""
    directory = local_directory(directory, CONFIG_FILE, WEIGHTS_FILE)
    _require_files(directory, CONFIG_FILE, WEIGHTS_FILE)
    return load_config(directory, model_type), read_weights(directory / WEIGHTS_FILE)
