"""Any causal LM of transformers, from a directory, the hub or a GGUF file, as a part of a VLM."""

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
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.trainer_utils import align_special_tokens

from sparse_vlm.dtypes import DTYPES
from sparse_vlm.errors import UserError, one_line
from sparse_vlm.vlm.language.text_part import text_part
from sparse_vlm.vlm.language.turns import end_tokens

ADAPTER = (
    "{} holds a peft adapter (adapter_config.json), which is a change of a language model: merge it into its model "
    "first (peft's merge_and_unload) and give the directory of the result."
)


def load_llm(llm: str | Path, gguf_file: str | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal LM in its own dtype (as its configuration or its weights say; of GGUF float32), and its tokenizer. Of a
    model of several modalities it is the text part.

    A GGUF file is dequantised, and its weights are copied into a fresh model: what transformers makes of GGUF
    cannot be saved.

    Args:
        llm: local directory, OWNER/NAME on the Hugging Face hub, or path of a .gguf file.
        gguf_file: name of the GGUF file in the directory `llm`.

    Raises:
        UserError: nothing is there, transformers cannot open it, or weights are missing or of other shapes.
    """
    name = llm
    if Path(llm).suffix == ".gguf" and gguf_file is None:
        llm, gguf_file = Path(llm).parent, Path(llm).name
    _check_llm(Path(llm), gguf_file)
    try:
        if gguf_file is None:
            model = _load_strictly(llm, trust_remote_code=False)
            return text_part(model), AutoTokenizer.from_pretrained(llm, trust_remote_code=False)
        # AutoTokenizer would read the whole file (10 s) to choose a class; from GGUF all are the tokenizers library's.
        tokenizer = PreTrainedTokenizerFast.from_pretrained(llm, gguf_file=gguf_file)
        gguf: Any = {"gguf_file": gguf_file, "quantization_config": GgufConfig(dequantize=True)}
        loaded = _load_strictly(llm, dtype=torch.float32, **gguf)
    except Exception as error:  # damaged files and missing packages make transformers raise nearly anything
        if "trust_remote_code" in str(error):
            raise UserError(
                f"The LLM {name} needs code of its own (auto_map), which is not run here. Choose one of a model type "
                "that transformers itself has."
            ) from error
        raise UserError(f"The LLM {name} cannot be opened: {one_line(error)}") from error
    model = AutoModelForCausalLM.from_config(loaded.config, dtype=torch.float32)
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    model.generation_config = loaded.generation_config
    return model.eval(), tokenizer


def _load_strictly(llm: str | Path, **options: Any) -> PreTrainedModel:
    """The model, none of its weights made up. Names that it does not know may be there: heads for other purposes."""
    kind: Any = AutoModelForCausalLM
    if "gguf_file" not in options:
        config = AutoConfig.from_pretrained(llm, **options)
        kind = kind if config.get_text_config(decoder=True) is config else AutoModelForImageTextToText
    model, report = kind.from_pretrained(llm, output_loading_info=True, ignore_mismatched_sizes=True, **options)
    if getattr(model, "_hf_peft_config_loaded", False):
        raise UserError(ADAPTER.format(llm))
    if unfit := unfit_weights(report, "missing_keys", "mismatched_keys"):
        raise UserError(f"its weights do not fit its config.json ({unfit}).")
    if model.dtype not in DTYPES.values():
        raise UserError(f"its weights are {model.dtype}; convert them first ({', '.join(DTYPES)}).")
    return model


def unfit_weights(report: Mapping[str, Collection[Any]], *kinds: str) -> str:
    """What transformers' loading report lists under `kinds`, by name where there are few; "" where there is nothing."""
    problems = {kind: sorted(map(str, report[kind])) for kind in kinds if report[kind]}
    return "; ".join(
        f"{kind}: {', '.join(keys[:5])}{f' and {len(keys) - 5} more' if len(keys) > 5 else ''}"
        for kind, keys in problems.items()
    )


def _check_llm(directory: Path, gguf_file: str | None) -> None:
    """Says what is missing of a local LLM. OWNER/NAME that is no directory is the hub's; so a mistyped directory seldom
    becomes a question to the hub."""
    if not directory.is_dir():
        if gguf_file is not None or directory.is_absolute() or len(directory.parts) != 2:
            raise UserError(f"There is no LLM directory {directory}; on the Hugging Face hub a name is OWNER/NAME.")
        return
    if gguf_file is None and (directory / "adapter_config.json").is_file():
        raise UserError(ADAPTER.format(directory))
    if gguf_file is not None and not (directory / gguf_file).is_file():
        present = ", ".join(sorted(path.name for path in directory.glob("*.gguf"))) or "none"
        raise UserError(f"There is no file {gguf_file} in {directory}; .gguf files there: {present}.")
    if gguf_file is None and not (directory / "config.json").is_file():
        raise UserError(f"{directory} holds no config.json: it is no LLM directory. For GGUF, name the file.")


def settle_generation(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Makes a causal LM's generation settings (in place) such that an answer stops where the tokenizer's chat template
    ends it, and that transformers saves them after any change.

    Training is such a change: Trainer makes the special tokens the tokenizer's, and then transformers refuses to save
    what it had only warned about before. So they are made so here.
    """
    align_special_tokens(model, tokenizer)
    settings = model.generation_config
    stops = settings.eos_token_id if isinstance(settings.eos_token_id, list) else [settings.eos_token_id]
    stops += end_tokens(tokenizer, tokenizer.get_chat_template())
    settings.eos_token_id = list(dict.fromkeys(token for token in stops if token is not None))
    for name in settings.to_diff_dict():
        # Such a value has no effect: Vicuna's temperature without do_sample. Adding do_sample would change the answers.
        if not _has_effect(settings, name):
            setattr(settings, name, None)


def _has_effect(settings: GenerationConfig, name: str) -> bool:
    """Whether transformers accepts the one setting `name` beside those that switch a mode on."""
    alone = GenerationConfig()
    for each in ("do_sample", "num_beams", "return_dict_in_generate", "use_cache", name):
        setattr(alone, each, getattr(settings, each))
    try:
        alone.validate(strict=True)
    except ValueError:
        return False
    return True


def most_positions(config: PreTrainedConfig) -> int | None:
    """How many tokens a language model can take at once, as its configuration says; None where it does not."""
    return getattr(config, "max_position_embeddings", getattr(config, "max_seq_len", None))
