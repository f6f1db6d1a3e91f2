"""Open any causal LM of transformers, from a directory, the hub or a GGUF file, as the language model of a VLM."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    GenerationConfig,
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.initialization import no_init_weights
from transformers.trainer_utils import align_special_tokens

from sparse_vlm.dtypes import DTYPES
from sparse_vlm.errors import UserError, one_line
from sparse_vlm.vlm.language.gguf_files import parsed_once
from sparse_vlm.vlm.language.text_part import text_part
from sparse_vlm.vlm.language.turns import end_tokens

ADAPTER = (
    "{} has a peft adapter (adapter_config.json), not a complete language model. Merge it into its base model first "
    "(peft's merge_and_unload) and give the directory of the result."
)


def load_llm(llm: str | Path, gguf_file: str | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Open a causal LM and its tokenizer.

    The model keeps its own dtype, according to its configuration or weights. Of a multimodal model the text part is
    returned. A GGUF file is dequantized to float32, and its weights are copied into a new model, because transformers
    cannot save the model that it opens from GGUF.

    Args:
        llm: local directory, OWNER/NAME on the Hugging Face hub, or path of a .gguf file.
        gguf_file: name of the GGUF file if `llm` is its directory.
    """
    name = llm
    if Path(llm).suffix == ".gguf" and gguf_file is None:
        llm, gguf_file = Path(llm).parent, Path(llm).name
    _check_llm(Path(llm), gguf_file)
    try:
        if gguf_file is None:
            model = _load_strictly(llm, trust_remote_code=False)
            return text_part(model), AutoTokenizer.from_pretrained(llm, trust_remote_code=False)
        # AutoTokenizer would read the whole file (10 s) to choose a class, but GGUF tokenizers are always fast
        tokenizer = PreTrainedTokenizerFast.from_pretrained(llm, gguf_file=gguf_file)
        gguf: Any = {"gguf_file": gguf_file, "quantization_config": GgufConfig(dequantize=True)}
        with parsed_once():
            loaded = _load_strictly(llm, dtype=torch.float32, **gguf)
    except Exception as error:  # damaged files and missing packages make transformers raise almost anything
        if "trust_remote_code" in str(error):
            raise UserError(
                f"The LLM {name} needs code of its own (auto_map), which is not run here. Choose an LLM that "
                "transformers itself implements."
            ) from error
        raise UserError(f"The LLM {name} cannot be opened: {one_line(error)}") from error
    with no_init_weights():
        model = AutoModelForCausalLM.from_config(loaded.config, dtype=torch.float32)
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    model.generation_config = loaded.generation_config
    return model.eval(), tokenizer


def _load_strictly(llm: str | Path, **options: Any) -> PreTrainedModel:
    """Load a model and check that none of its weights is missing. Unused weights, such as other heads, are allowed."""
    kind: Any = AutoModelForCausalLM
    if "gguf_file" not in options:
        config = AutoConfig.from_pretrained(llm, **options)
        kind = kind if config.get_text_config(decoder=True) is config else AutoModelForImageTextToText
    model, report = kind.from_pretrained(llm, output_loading_info=True, ignore_mismatched_sizes=True, **options)
    if getattr(model, "_hf_peft_config_loaded", False):
        raise UserError(ADAPTER.format(llm))
    if unfit := unfit_weights(report, "missing_keys", "mismatched_keys"):
        raise UserError(f"its weights do not match its config.json ({unfit}).")
    if model.dtype not in DTYPES.values():
        raise UserError(f"its weights are {model.dtype}; convert them first ({', '.join(DTYPES)}).")
    return model


def unfit_weights(report: Mapping[str, Collection[Any]], *kinds: str) -> str:
    """Summarize `kinds` of transformers' loading report, e.g. "missing_keys", with up to 5 names each; "" if empty."""
    problems = {kind: sorted(map(str, report[kind])) for kind in kinds if report[kind]}
    return "; ".join(
        f"{kind}: {', '.join(keys[:5])}{f' and {len(keys) - 5} more' if len(keys) > 5 else ''}"
        for kind, keys in problems.items()
    )


def _check_llm(directory: Path, gguf_file: str | None) -> None:
    """Raise UserError if a local LLM is incomplete.

    Only OWNER/NAME may be a hub name, so that most mistyped directories are not looked up on the hub.
    """
    if not directory.is_dir():
        if gguf_file is not None or directory.is_absolute() or len(directory.parts) != 2:
            raise UserError(
                f"There is no LLM directory {directory}. Names on the Hugging Face hub have the form OWNER/NAME."
            )
        return
    if gguf_file is None and (directory / "adapter_config.json").is_file():
        raise UserError(ADAPTER.format(directory))
    if gguf_file is not None and not (directory / gguf_file).is_file():
        present = ", ".join(sorted(path.name for path in directory.glob("*.gguf"))) or "none"
        raise UserError(f"There is no file {gguf_file} in {directory}; .gguf files there: {present}.")
    if gguf_file is None and not (directory / "config.json").is_file():
        raise UserError(f"{directory} is not an LLM directory: it has no config.json. For GGUF, name the file.")


def settle_generation(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Adapt a causal LM's generation settings, in place.

    Generation stops at the tokens with which the tokenizer's chat template ends an answer. The special tokens become
    the tokenizer's, and settings without effect are removed: Trainer aligns the tokens too, and after that change
    transformers refuses to save settings about which it only warned before.
    """
    align_special_tokens(model, tokenizer)
    settings = model.generation_config
    stops = settings.eos_token_id if isinstance(settings.eos_token_id, list) else [settings.eos_token_id]
    stops += end_tokens(tokenizer, tokenizer.get_chat_template())
    settings.eos_token_id = list(dict.fromkeys(token for token in stops if token is not None))
    for name in settings.to_diff_dict():
        # e.g. Vicuna's temperature without do_sample; adding do_sample would change the answers
        if not _has_effect(settings, name):
            setattr(settings, name, None)


def _has_effect(settings: GenerationConfig, name: str) -> bool:
    """Return whether transformers accepts the setting `name` together with those that select a mode."""
    alone = GenerationConfig()
    for each in ("do_sample", "num_beams", "return_dict_in_generate", "use_cache", name):
        setattr(alone, each, getattr(settings, each))
    try:
        alone.validate(strict=True)
    except ValueError:
        return False
    return True
