"""Shims that let LLaVA 1.2.2, written for transformers 4.36, run on later versions.

Each shim replaces one attribute of a module right after the module's import, and only if it is needed.
"""

import copy
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

MISSING = object()  # stands for an attribute that a module no longer has
Function = Callable[..., Any]


@dataclass(frozen=True)
class Patch:
    """Replacement of one attribute of a module.

    Attributes:
        module: dotted name of the module; the patch is applied right after its import.
        attribute: replaced attribute, dotted below the module, e.g. "LLaVATrainer.__init__".
        replace: function original (or MISSING) -> replacement.
        needed: function original (or MISSING) -> True if it must be replaced.
        serves: versions that need the patch, for display.
        purpose: problem that the patch solves, for display.
    """

    module: str
    attribute: str
    replace: Callable[[Any], Any]
    needed: Callable[[Any], bool]
    serves: str
    purpose: str


# Arguments that generate() passes to forward() in later versions, and that LLaVA's forward does not accept.
GENERATION_ARGUMENTS = ("cache_position", "logits_to_keep", "num_logits_to_keep")


def _dropping_generation_arguments(forward: Function) -> Function:
    @functools.wraps(forward)
    def dropping(self: Any, *args: Any, **kwargs: Any) -> Any:
        for name in GENERATION_ARGUMENTS:
            kwargs.pop(name, None)
        return forward(self, *args, **kwargs)

    return dropping


def _generation_passes_more(forward: Function) -> bool:
    from transformers import LlamaForCausalLM

    takes = inspect.signature(forward).parameters
    offered = inspect.signature(LlamaForCausalLM.forward).parameters
    anything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in offered.values())
    return any((anything or name in offered) and name not in takes for name in GENERATION_ARGUMENTS)


def _taking_a_dataset(get_train_sampler: Function) -> Function:
    @functools.wraps(get_train_sampler)
    def taking(self: Any, train_dataset: Any = None) -> Any:
        return get_train_sampler(self)

    return taking


def _trainer_passes_a_dataset(get_train_sampler: Function) -> bool:
    from transformers import Trainer

    return len(inspect.signature(Trainer._get_train_sampler).parameters) > len(
        inspect.signature(get_train_sampler).parameters
    )


def _layer_norms(original: object) -> list[type]:
    import torch

    return [torch.nn.LayerNorm]


def _moved_to_pytorch_utils(name: str) -> Callable[[Any], Any]:
    """Replace a missing function by the one of this name in transformers.pytorch_utils; if it was removed there too, by
    one that raises. LLaVA-NeXT only imports those."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"This version of transformers has no {name}.")

    def find(original: object) -> Any:
        from transformers import pytorch_utils

        return getattr(pytorch_utils, name, refuse)

    return find


def _is_missing(original: object) -> bool:
    return original is MISSING


def _with_processing_class(init: Function) -> Function:
    @functools.wraps(init)
    def renaming(self: Any, *args: Any, tokenizer: Any = None, **kwargs: Any) -> None:
        if tokenizer is not None:
            kwargs["processing_class"] = tokenizer
        init(self, *args, **kwargs)

    return renaming


def _trainer_takes_no_tokenizer(init: Function) -> bool:
    from transformers import Trainer

    return "tokenizer" not in inspect.signature(Trainer.__init__).parameters


def _saving_without_metrics(save_checkpoint: Function) -> Function:
    @functools.wraps(save_checkpoint)
    def saving(self: Any, model: Any, trial: Any, metrics: Any = None) -> None:
        from transformers import Trainer

        if getattr(self.args, "tune_mm_mlp_adapter", False):  # LLaVA writes the projector itself
            save_checkpoint(self, model, trial, metrics)
        else:
            Trainer._save_checkpoint(self, model, trial)

    return saving


def _trainer_saves_without_metrics(save_checkpoint: Function) -> bool:
    from transformers import Trainer

    return "metrics" not in inspect.signature(Trainer._save_checkpoint).parameters


def _allowing_numpys_state(load_rng_state: Function) -> Function:
    @functools.wraps(load_rng_state)
    def loading(self: Any, checkpoint: str | None) -> None:
        import numpy as np
        import torch

        # only the types in a pickle of numpy's random state
        reconstruct: Any = np.zeros(0).__reduce__()[0]  # the name of its module depends on the version of numpy
        harmless: list[Any] = [reconstruct, np.ndarray, np.dtype, type(np.dtype(np.uint32))]
        with torch.serialization.safe_globals(harmless):
            load_rng_state(self, checkpoint)

    return loading


def _torch_refuses_numpys_state(load_rng_state: Function) -> bool:
    import torch

    return hasattr(torch.serialization, "safe_globals") and "safe_globals" not in inspect.getsource(load_rng_state)


# Modules of LLaVA that are not quantised; its own training excludes the projector too.
WHOLE = ["(.*\\.)?vision_tower", "(.*\\.)?mm_projector", "lm_head"]


def _with_bits_as_settings(from_pretrained: Any) -> Any:
    inherited = from_pretrained.__func__  # it is a classmethod

    @functools.wraps(inherited)
    def opening(cls: type, *args: Any, load_in_4bit: bool = False, load_in_8bit: bool = False, **kwargs: Any) -> Any:
        from transformers import BitsAndBytesConfig

        settings = kwargs.get("quantization_config")
        if settings is None and (load_in_4bit or load_in_8bit):
            settings = BitsAndBytesConfig(load_in_4bit=load_in_4bit, load_in_8bit=load_in_8bit)
        if not isinstance(settings, BitsAndBytesConfig):  # none, or those of another quantizer
            return inherited(cls, *args, **kwargs)
        import torch

        from sparse_vlm.vlm.language.quantization import keep_four_bit_layout

        settings = copy.copy(settings)  # the caller's
        settings.llm_int8_skip_modules = [*(settings.llm_int8_skip_modules or []), *WHOLE]
        if kwargs.get("torch_dtype") is None and kwargs.get("dtype") is None:
            kwargs["torch_dtype"] = torch.float16  # as transformers 4 did
        model = inherited(cls, *args, **{**kwargs, "quantization_config": settings})
        keep_four_bit_layout(model)
        return model

    return classmethod(opening)


def _bits_are_no_arguments(from_pretrained: Any) -> bool:
    return "load_in_4bit" not in inspect.getsource(from_pretrained.__func__)


# LLaVA's language models, and those that LLaVA-NeXT adds: the end of the module's name, and the middle of the class's
FAMILIES = {
    "llama": "Llama",
    "mistral": "Mistral",
    "mpt": "Mpt",
    "mixtral": "Mixtral",
    "qwen": "Qwen",
    "qwen_moe": "QwenMoe",
    "gemma": "Gemma",
}


def _in_all_families(
    method: str, replace: Callable[[Any], Any], needed: Callable[[Any], bool], serves: str, purpose: str
) -> list[Patch]:
    """Patches of a method in LLaVA's language models."""
    return [
        Patch(
            f"llava.model.language_model.llava_{module}",
            f"Llava{family}ForCausalLM.{method}",
            replace,
            needed,
            serves,
            purpose,
        )
        for module, family in FAMILIES.items()
    ]


TRAINER = "llava.train.llava_trainer"
SHIMS = [
    *_in_all_families(
        "from_pretrained", _with_bits_as_settings, _bits_are_no_arguments, "transformers >= 5.0",
        "load_in_4bit and load_in_8bit are no longer arguments of from_pretrained",
    ),
    *_in_all_families(
        "forward", _dropping_generation_arguments, _generation_passes_more, "transformers >= 4.38",
        "generate() passes arguments that LLaVA's forward does not accept",
    ),
    Patch(
        "transformers.trainer", "ALL_LAYERNORM_LAYERS", _layer_norms, _is_missing,
        "transformers >= 4.54", "llava.train.llava_trainer imports a name that was removed",
    ),
    *(
        Patch(
            "transformers.modeling_utils", name, _moved_to_pytorch_utils(name), _is_missing,
            "LLaVA-NeXT, transformers >= 5.0", "LLaVA-NeXT's Q-Former imports a name that was moved or removed",
        )
        for name in ("apply_chunking_to_forward", "find_pruneable_heads_and_indices", "prune_linear_layer")
    ),
    Patch(
        TRAINER, "LLaVATrainer._get_train_sampler", _taking_a_dataset, _trainer_passes_a_dataset,
        "transformers >= 4.52", "the Trainer passes the dataset to a method that does not accept it",
    ),
    Patch(
        TRAINER, "LLaVATrainer.__init__", _with_processing_class, _trainer_takes_no_tokenizer,
        "transformers >= 5.0", "the Trainer's argument tokenizer was renamed to processing_class",
    ),
    Patch(
        TRAINER, "LLaVATrainer._save_checkpoint", _saving_without_metrics, _trainer_saves_without_metrics,
        "transformers >= 4.46", "the Trainer's method no longer accepts metrics",
    ),
    Patch(
        "transformers.trainer", "Trainer._load_rng_state", _allowing_numpys_state, _torch_refuses_numpys_state,
        "transformers < 4.48 with torch >= 2.6", "resuming fails, as torch refuses to unpickle numpy's random state",
    ),
]  # fmt: skip
