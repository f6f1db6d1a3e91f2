"""What visual tokens cost behind the tower: `python -m eval.cost.llm --llms smollm2-135m tinyllama-1.1b vicuna-7b`.

For each LLM and tower: multiply-accumulates and seconds of the prefill (projector, visual tokens, prompt), of the
tower, and of both, the time to the first token; bytes of the key-value cache; peak memory. Batch 1. Towers have random
weights; so have LLMs that are named by a shape (a directory or .gguf file brings its own: `--llms PATH`). What does
not fit into memory is counted, not timed. Output: tables, FILE.json, FILE.md, FILE.png.
"""

import argparse
import copy
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from eval.cost.arguments import add_arguments, begin
from eval.cost.report import Section, megabytes, publish
from sparse_vlm.devices import free_bytes, peak_bytes
from sparse_vlm.dtypes import DTYPES
from sparse_vlm.errors import exit_with_sentence
from sparse_vlm.measure.llms import LLM, open_llm
from sparse_vlm.measure.timing import Run, machine, require_positive, take_turns
from sparse_vlm.measure.towers import Tower, open_tower
from sparse_vlm.vlm.modeling import SparseVLMConfig, build_projector
from sparse_vlm.vlm.vision import SparseFormerVisionConfig

TOWERS = (
    "timm:vit_large_patch14_clip_quickgelu_336",
    "timm:vit_large_patch14_clip_quickgelu_224",
    "sparseformer-clip-l@336",
    "sparseformer-clip-b",
)


@dataclass
class FirstToken:
    """A picture and a prompt, up to the first word of the answer.

    Attributes:
        tower: which.
        prefill_gmacs: 1e9 multiply-accumulates of the projector and the LLM on the visual tokens and the prompt.
        cache_bytes: keys and values of the visual tokens and the prompt.
        tower_seconds, prefill_seconds: of every recorded run; empty: counted only.
        peak_bytes: allocated beyond the weights at the worst moment of tower or prefill; 0: counted only.
    """

    tower: Tower
    prefill_gmacs: float
    cache_bytes: int
    tower_seconds: list[float] = field(default_factory=list)
    prefill_seconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0

    def medians(self) -> dict[str, float]:
        """Seconds of the tower, the prefill, and both, as "tower", "prefill", "first_token"; empty: counted only."""
        if not self.tower_seconds:
            return {}
        both = [sum(pair) for pair in zip(self.tower_seconds, self.prefill_seconds, strict=True)]
        parts = {"tower": self.tower_seconds, "prefill": self.prefill_seconds, "first_token": both}
        return {name: statistics.median(seconds) for name, seconds in parts.items()}


@dataclass(frozen=True)
class Result:
    """An LLM behind several towers.

    Attributes:
        llm: which.
        dtype: of everything but a SparseFormer's coordinates.
        rows: one for each tower.
        untimed: why nothing was timed; "": it was.
    """

    llm: LLM
    dtype: str
    rows: list[FirstToken]
    untimed: str

    def as_json(self) -> dict[str, Any]:
        """Everything."""
        rows = [asdict(row) | {"median_seconds": row.medians()} for row in self.rows]
        about = {"llm": self.llm.name, "weights": self.llm.weights, "parameters": self.llm.parameters}
        return {**about, "dtype": self.dtype, "untimed": self.untimed, "towers": rows}


def make_projector(tower: Tower, llm: LLM) -> nn.Module:
    """The projector that `sparse-vlm build` would put between them, with torch's own random weights."""
    vision = SparseFormerVisionConfig(hidden_size=tower.width, num_tokens=tower.tokens, num_prefix_tokens=1)
    text = copy.deepcopy(llm.config)  # it is changed in there: the LLM's own would lose its choice of attention
    return build_projector(SparseVLMConfig(vision_config=vision, text_config=text))


def prefill(llm: PreTrainedModel, projector: nn.Module, visual: Tensor, words: Tensor) -> CausalLMOutputWithPast:
    """The LLM on a picture and a prompt: logits of the last position alone, and the cache.

    Args:
        llm: causal.
        projector: to its width.
        visual: float[1, n, C].
        words: int64[1, words].
    """
    embedded = torch.cat([projector(visual), llm.get_input_embeddings()(words)], dim=1)
    model: Any = llm  # transformers' annotation of a call fits none of its own models
    return model(inputs_embeds=embedded, use_cache=True, logits_to_keep=1)


def count(tower: Tower, llm: LLM, prompt_tokens: int, dtype: torch.dtype) -> FirstToken:
    """What needs no numbers."""
    model = llm.without_numbers(dtype)
    with torch.device("meta"):
        projector = make_projector(tower, llm).to(dtype)
        inputs = (
            torch.empty(1, tower.tokens, tower.width, dtype=dtype),
            torch.zeros(1, prompt_tokens, dtype=torch.long),
        )
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        cache: Any = prefill(model, projector, *inputs).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    return FirstToken(tower, counter.get_total_flops() / 2e9, held)


def shortage(llm: LLM, towers: Sequence[Tower], dtype: torch.dtype, device: torch.device) -> str:
    """Why the weights do not fit into the memory that is free, with a fifth of it left to work in; "": they do."""
    wanted = (llm.parameters + sum(tower.parameters for tower in towers)) * dtype.itemsize
    free = free_bytes(device)
    if wanted <= 0.8 * free:
        return ""
    return f"counted, not timed: {wanted / 1e9:.1f} GB of weights, {free / 1e9:.1f} GB free"


def measure(
    llm: LLM, towers: Sequence[Tower], prompt_tokens: int, dtype: str, device: torch.device, repeats: int
) -> Result:
    """Counts, and times if the weights fit: towers and prefills all take turns.

    Args:
        llm: which.
        towers: which.
        prompt_tokens: of the text, random ids.
        dtype: a key of `DTYPES`.
        device: where.
        repeats: recorded runs of each.
    """
    rows = [count(tower, llm, prompt_tokens, DTYPES[dtype]) for tower in towers]
    result = Result(llm, dtype, rows, shortage(llm, towers, DTYPES[dtype], device))
    if result.untimed:
        return result
    model = llm.load(DTYPES[dtype]).to(device)
    words = torch.randint(llm.config.vocab_size, (1, prompt_tokens), device=device)
    runs: list[Run] = []
    for tower in towers:
        image = torch.randn(1, 3, tower.image_size, tower.image_size, device=device).to(DTYPES[dtype])
        visual = torch.randn(1, tower.tokens, tower.width, device=device).to(DTYPES[dtype])
        projector = make_projector(tower, llm).to(device, DTYPES[dtype])
        runs.append(partial(tower.build().to(device, DTYPES[dtype]), image))
        runs.append(partial(prefill, model, projector, visual, words))
    with torch.inference_mode():
        seconds = take_turns(runs, repeats, device)
        for index, row in enumerate(rows):
            row.tower_seconds, row.prefill_seconds = seconds[2 * index : 2 * index + 2]
            row.peak_bytes = max(peak_bytes(run, device) for run in runs[2 * index : 2 * index + 2])
    return result


def section_of(result: Result, how: str) -> Section:
    """A result as a table; MB of memory are weights and the peak beyond them."""
    counted = ["tower", "image", "tokens", "tower GMAC", "prefill GMAC"]
    rows = [[*counted, "tower ms", "prefill ms", "first token ms", "cache MB", "peak MB"]]
    for row in result.rows:
        tower, medians = row.tower, row.medians()
        times = [f"{1e3 * value:.1f}" for value in medians.values()] or ["–"] * 3
        weights = (tower.parameters + result.llm.parameters) * DTYPES[result.dtype].itemsize
        memory = megabytes(weights + row.peak_bytes) if medians else "–"
        names = [tower.name, str(tower.image_size), str(tower.tokens)]
        counts = [f"{tower.gmacs:.1f}", f"{row.prefill_gmacs:.1f}"]
        rows.append([*names, *counts, *times, f"{row.cache_bytes / 1e6:.2f}", memory])
    title = f"{result.llm.name} ({result.llm.parameters / 1e6:,.0f}M, weights: {result.llm.weights}): {how}"
    return Section(title, rows, result.untimed)


def figure_of(results: Sequence[Result]) -> Figure:
    """A panel for each LLM: seconds to the first token, or GMACs where nothing was timed; tower and prefill stacked."""
    figure = Figure(figsize=(7, 0.6 + 1.9 * len(results)), layout="constrained")
    for axes, result in zip(figure.subplots(len(results), squeeze=False)[:, 0], results, strict=True):
        names = [f"{row.tower} ({row.tower.tokens})" for row in result.rows]
        if result.untimed:
            parts = [[row.tower.gmacs for row in result.rows], [row.prefill_gmacs for row in result.rows]]
        else:
            parts = [[row.medians()[name] for row in result.rows] for name in ("tower", "prefill")]
        axes.barh(names, parts[0], label="tower")
        axes.barh(names, parts[1], left=parts[0], label="prefill")
        axes.set(title=result.llm.name, xlabel="GMAC" if result.untimed else "seconds to the first token")
        axes.tick_params(axis="y", labelsize=7)
        axes.invert_yaxis()
        axes.legend(fontsize=7)
    return figure


def build_parser() -> argparse.ArgumentParser:
    """The arguments of `python -m eval.cost.llm`."""
    parser = argparse.ArgumentParser(prog="python -m eval.cost.llm", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--llms", nargs="+", default=["smollm2-135m"], help="shapes, directories or .gguf files")
    parser.add_argument("--models", nargs="+", default=list(TOWERS), metavar="NAME[@SIZE]", help="vision towers")
    parser.add_argument("--prompt-tokens", type=int, default=64, help="of the text")
    add_arguments(parser, repeats=5, output="runs/bench/llm_cost.json")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    arguments = build_parser().parse_args(argv)

    def run() -> None:
        prompt = arguments.prompt_tokens
        require_positive(prompt_tokens=prompt)
        device, dtype = begin(arguments)
        towers = [open_tower(name) for name in dict.fromkeys(arguments.models)]
        llms = [open_llm(name) for name in dict.fromkeys(arguments.llms)]
        results = [measure(llm, towers, prompt, dtype, device, arguments.repeats) for llm in llms]
        setting = {"prompt_tokens": prompt, "threads": arguments.threads, "dtype": dtype, "batch": 1}
        how = f"prompt of {prompt} tokens, {arguments.threads} CPU threads, {dtype}, batch 1"
        values = {"machine": machine(device), **setting, "results": [result.as_json() for result in results]}
        publish(arguments.output, values, [section_of(result, how) for result in results], figure_of(results))

    return exit_with_sentence(run)


if __name__ == "__main__":
    sys.exit(main())
