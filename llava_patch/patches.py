"""Patches of LLaVA: towers and shims, how they are applied after imports, and how they are undone."""

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any

from llava_patch.compat import MISSING, SHIMS, Function, Patch
from llava_patch.names import is_ours
from sparse_vlm.integrations.import_hook import after_import

BUILDER = "llava.model.multimodal_encoder.builder"
ARCH = "llava.model.llava_arch"


def _with_our_towers(build_vision_tower: Function) -> Function:
    @functools.wraps(build_vision_tower)
    def build(vision_tower_cfg: Any, **kwargs: Any) -> Any:
        name = getattr(vision_tower_cfg, "mm_vision_tower", getattr(vision_tower_cfg, "vision_tower", None))
        if name is None or not is_ours(name):
            return build_vision_tower(vision_tower_cfg, **kwargs)
        from llava_patch.tower import SparseFormerTower

        return SparseFormerTower(name, vision_tower_cfg, **kwargs)

    return build


def _recording_the_encoder(initialize_vision_modules: Function) -> Function:
    @functools.wraps(initialize_vision_modules)
    def initialize(self: Any, model_args: Any, *args: Any, **kwargs: Any) -> Any:
        result = initialize_vision_modules(self, model_args, *args, **kwargs)
        from llava_patch.tower import RECORD, SparseFormerTower

        tower = self.get_vision_tower()
        if isinstance(tower, SparseFormerTower):
            setattr(self.config, RECORD, tower.encoder_config.to_dict())
        return result

    return initialize


def _checking_the_context(initialize_vision_tokenizer: Function) -> Function:
    @functools.wraps(initialize_vision_tokenizer)
    def initialize(self: Any, *args: Any, **kwargs: Any) -> Any:
        from llava_patch.tower import SparseFormerTower

        tower = self.get_vision_tower()
        if isinstance(tower, SparseFormerTower):
            tower.check_context(self.config)
        return initialize_vision_tokenizer(self, *args, **kwargs)

    return initialize


def _without_pooling_our_tokens(get_2d_pool: Function) -> Function:
    @functools.wraps(get_2d_pool)
    def pool(self: Any, image_feature: Any, *args: Any, **kwargs: Any) -> Any:
        from llava_patch.tower import SparseFormerTower

        if isinstance(self.get_vision_tower(), SparseFormerTower):
            return image_feature
        return get_2d_pool(self, image_feature, *args, **kwargs)

    return pool


def _always(original: object) -> bool:
    return True


def _exists(original: object) -> bool:
    return original is not MISSING


TOWERS = [
    Patch(BUILDER, "build_vision_tower", _with_our_towers, _always, "all", "builds SparseFormer towers too"),
    Patch(ARCH, "build_vision_tower", _with_our_towers, _always, "all", "the same function, imported by name"),
    Patch(
        ARCH,
        "LlavaMetaModel.initialize_vision_modules",
        _recording_the_encoder,
        _always,
        "all",
        "writes the encoder's configuration into the checkpoint's config.json",
    ),
    Patch(
        ARCH,
        "LlavaMetaForCausalLM.initialize_vision_tokenizer",
        _checking_the_context,
        _always,
        "all",
        "checks, when --model_max_length is known, that an image leaves room for text",
    ),
    Patch(
        ARCH,
        "LlavaMetaForCausalLM.get_2dPool",
        _without_pooling_our_tokens,
        _exists,
        "LLaVA-NeXT",
        "leaves the tokens of video frames as they are, instead of pooling them as a grid",
    ),
]

# State of the process, like the patched modules: functions that cancel waiting; original and replacement of each patch.
_waiting: list[Callable[[], None]] = []
_made: dict[Patch, tuple[Any, Any]] = {}


def install() -> None:
    """See `llava_patch.install`. Modules of other packages are not patched until LLaVA is imported."""
    if _waiting:
        return
    for patch in (*TOWERS, *SHIMS):
        if patch.module.startswith("llava."):
            _wait_for(patch)
        else:
            _waiting.append(after_import(BUILDER, functools.partial(_wait_for, patch)))


def _wait_for(patch: Patch) -> None:
    _waiting.append(after_import(patch.module, functools.partial(_make, patch)))


def uninstall() -> None:
    """See `llava_patch.uninstall`."""
    for cancel in _waiting:
        cancel()
    _waiting.clear()
    for patch, (original, _) in _made.items():
        owner, name = _owner(patch)
        if original is MISSING:
            delattr(owner, name)
        else:
            setattr(owner, name, original)
    _made.clear()


def state_of(patch: Patch) -> str | None:
    """Describe the state of a patch in this process; None if its module has nothing of that name."""
    if patch in _made:
        return "in effect"
    if patch.module not in sys.modules:
        return "not imported"
    owner, name = _owner(patch)
    return None if inspect.getattr_static(owner, name, MISSING) is MISSING else "not needed"


def _make(patch: Patch) -> None:
    owner, name = _owner(patch)
    if owner is MISSING:  # a fork without this class
        return
    found = inspect.getattr_static(owner, name, MISSING)  # a classmethod itself, not bound
    # llava_arch imports the builder's function by name, usually after it has been replaced.
    original = next((original for original, replacement in _made.values() if replacement is found), found)
    if patch not in _made and patch.needed(original):
        replacement = patch.replace(original)
        setattr(owner, name, replacement)
        _made[patch] = original, replacement


def _owner(patch: Patch) -> tuple[Any, str]:
    """Object that owns the attribute, MISSING if there is none, and the last part of the attribute's name."""
    *path, name = patch.attribute.split(".")
    module: Any = sys.modules[patch.module]
    return functools.reduce(lambda owner, part: getattr(owner, part, MISSING), path, module), name
