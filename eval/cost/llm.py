"""Cost of visual tokens in an LLM: prefill, time to the first token, key-value cache and peak memory.

    python -m eval.cost.llm --llms smollm2-135m tinyllama-1.1b vicuna-7b
    python -m eval.cost.llm --models sparseformer-clip-l@336 --tokens 4,9,16,25,36,49,64
    python -m eval.cost.llm --llms SmolLM2-135M-Instruct.Q4_1.gguf --models sparseformer-clip-l@336 --prompt_tokens 32

Measures, for each LLM and vision tower at batch 1, the multiply-accumulates and seconds of the tower, of the prefill
(projector, visual tokens, prompt) and of both, which is the time to the first token. Towers have random weights, and so
do LLMs named by a shape; a directory or .gguf file has its own. An LLM that does not fit into memory is counted but not
timed. Writes FILE.json with every run, FILE.md and FILE.png.
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
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from eval.cost.arguments import TOWERS_HELP, add_arguments, add_repeats, add_tokens, begin
from eval.cost.report import Section, draw_stacked, megabytes, publish
from eval.cost.runtimes import Setting
from sparse_vlm.command_line import CommandParser
from sparse_vlm.devices import free_bytes, peak_bytes
from sparse_vlm.dtypes import DTYPES
from sparse_vlm.encoder.token_counts import TokenCounts
from sparse_vlm.measure.llms import LLM, open_llm
from sparse_vlm.measure.timing import Run, gmacs_of, machine, require_positive, take_turns
from sparse_vlm.measure.towers import Tower, build_towers, open_towers
from sparse_vlm.vlm.configuration import SparseVLMConfig
from sparse_vlm.vlm.language.prefixes import CACHE
from sparse_vlm.vlm.language.projector import build_projector
from sparse_vlm.vlm.vision import SparseFormerVisionConfig

TOWERS = (
    "timm:vit_large_patch14_clip_quickgelu_336",
    "timm:vit_large_patch14_clip_quickgelu_224",
    "sparseformer-clip-l@336",
    "sparseformer-clip-b",
)


@dataclass
class FirstToken:
    """Cost of an image and a prompt, up to the first token of the answer.

    Attributes:
        tower: the vision tower.
        prefill_gmacs: 1e9 multiply-accumulates of the projector and the LLM on the visual tokens and the prompt.
        cache_bytes: size of the keys and values of the visual tokens and the prompt.
        tower_seconds, prefill_seconds: seconds of every recorded run; empty if only counted.
        peak_bytes: peak memory of tower and prefill beyond the weights; 0 if only counted.
    """

    tower: Tower
    prefill_gmacs: float
    cache_bytes: int
    tower_seconds: list[float] = field(default_factory=list)
    prefill_seconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0

    def medians(self) -> dict[str, float]:
        """Median seconds: "tower", "prefill", and "first_token" for both; empty if only counted."""
        if not self.tower_seconds:
            return {}
        both = [sum(pair) for pair in zip(self.tower_seconds, self.prefill_seconds, strict=True)]
        parts = {"tower": self.tower_seconds, "prefill": self.prefill_seconds, "first_token": both}
        return {name: statistics.median(seconds) for name, seconds in parts.items()}


@dataclass(frozen=True)
class Result:
    """An LLM behind several towers.

    Attributes:
        llm: the language model.
        dtype: dtype of everything except a SparseFormer's coordinates.
        rows: one for each tower.
        untimed: why nothing was timed; "" if it was.
    """

    llm: LLM
    dtype: str
    rows: list[FirstToken]
    untimed: str

    def as_json(self) -> dict[str, Any]:
        """All values, with the medians."""
        rows = [asdict(row) | {"median_seconds": row.medians()} for row in self.rows]
        about = {"llm": self.llm.name, "weights": self.llm.weights, "parameters": self.llm.parameters}
        return {**about, "dtype": self.dtype, "untimed": self.untimed, "towers": rows}


def make_projector(tower: Tower, llm: LLM) -> nn.Module:
    """Make the projector that `sparse-vlm build` would make, with torch's default random weights."""
    vision = SparseFormerVisionConfig(hidden_size=tower.width, num_tokens=tower.tokens, num_prefix_tokens=1)
    text = copy.deepcopy(llm.config)  # build_projector changes it: the LLM would lose its attention implementation
    return build_projector(SparseVLMConfig(vision_config=vision, text_config=text))


def prefill(llm: PreTrainedModel, projector: nn.Module, visual: Tensor, words: Tensor) -> CausalLMOutputWithPast:
    """Run the LLM on an image and a prompt; compute the logits of the last position only, and the cache.

    Args:
        llm: causal language model.
        projector: maps visual tokens to the LLM's width.
        visual: visual tokens float[1, n, C].
        words: token ids of the prompt int64[1, words].
    """
    embedded = torch.cat([projector(visual), llm.get_input_embeddings()(words)], dim=1)
    model: Any = llm  # transformers' annotation of a call does not fit its models
    return model(inputs_embeds=embedded, use_cache=True, logits_to_keep=1)


def count(tower: Tower, llm: LLM, prompt_tokens: int, dtype: torch.dtype) -> FirstToken:
    """Count multiply-accumulates and cache without computing anything, on the meta device."""
    model = llm.without_numbers(dtype)
    with torch.device("meta"):
        projector = make_projector(tower, llm).to(dtype)
        inputs = (
            torch.empty(1, tower.tokens, tower.width, dtype=dtype),
            torch.zeros(1, prompt_tokens, dtype=torch.long),
        )
    with torch.no_grad():
        cache: Any = prefill(model, projector, *inputs)[CACHE]
        gmacs = gmacs_of(partial(prefill, model, projector, *inputs))
    return FirstToken(tower, gmacs, sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers))


def shortage(llm: LLM, towers: Sequence[Tower], dtype: torch.dtype, device: torch.device) -> str:
    """Say why the weights do not fit into 80% of the free memory; "" if they do."""
    held = {tower.name if tower.sparse else str(tower): tower.parameters for tower in towers}  # see build_towers
    wanted = (llm.parameters + sum(held.values())) * dtype.itemsize
    free = free_bytes(device)
    if wanted <= 0.8 * free:
        return ""
    return f"counted, not timed: {wanted / 1e9:.1f} GB of weights, {free / 1e9:.1f} GB free"


def measure(
    llm: LLM, towers: Sequence[Tower], prompt_tokens: int, dtype: str, device: torch.device, repeats: int
) -> Result:
    """Count all costs, and time towers and prefills in turns if the weights fit into memory.

    Args:
        llm: the language model.
        towers: the vision towers.
        prompt_tokens: number of text tokens, random ids.
        dtype: a key of `DTYPES`.
        device: where to compute.
        repeats: recorded runs of each tower and prefill.
    """
    rows = [count(tower, llm, prompt_tokens, DTYPES[dtype]) for tower in towers]
    result = Result(llm, dtype, rows, shortage(llm, towers, DTYPES[dtype], device))
    if result.untimed:
        return result
    model = llm.load(DTYPES[dtype]).to(device)
    words = torch.randint(llm.config.vocab_size, (1, prompt_tokens), device=device)
    runs: list[Run] = []
    for tower, encoder in zip(towers, build_towers(towers, device, DTYPES[dtype]), strict=True):
        image = torch.randn(1, 3, tower.image_size, tower.image_size, device=device).to(DTYPES[dtype])
        visual = torch.randn(1, tower.tokens, tower.width, device=device).to(DTYPES[dtype])
        projector = make_projector(tower, llm).to(device, DTYPES[dtype])
        runs.append(partial(encoder, image))
        runs.append(partial(prefill, model, projector, visual, words))
    with torch.inference_mode():
        seconds = take_turns(runs, repeats, device)
        for index, row in enumerate(rows):
            row.tower_seconds, row.prefill_seconds = seconds[2 * index : 2 * index + 2]
            row.peak_bytes = max(peak_bytes(run, device) for run in runs[2 * index : 2 * index + 2])
    return result


def section_of(result: Result, prompt_tokens: int, setting: Setting) -> Section:
    """Tabulate a result; the peak memory includes the weights."""
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
    title = f"{result.llm.name} ({result.llm.parameters / 1e6:,.0f}M, weights: {result.llm.weights}): "
    title += f"prompt of {prompt_tokens} tokens, {setting}"
    return Section(title, rows, result.untimed)


def figure_of(results: Sequence[Result]) -> Figure:
    """Draw a panel for each LLM: seconds (GMACs if untimed) of tower and prefill, stacked."""
    figure = Figure(figsize=(7, 0.6 + 1.9 * len(results)), layout="constrained")
    for axes, result in zip(figure.subplots(len(results), squeeze=False)[:, 0], results, strict=True):
        towers = [row.tower for row in result.rows]
        names = [str(tower) if tower.requested else f"{tower} ({tower.tokens})" for tower in towers]
        if result.untimed:
            parts = [[row.tower.gmacs for row in result.rows], [row.prefill_gmacs for row in result.rows]]
        else:
            parts = [[row.medians()[name] for row in result.rows] for name in ("tower", "prefill")]
        draw_stacked(axes, names, {"tower": parts[0], "prefill": parts[1]})
        axes.set(title=result.llm.name, xlabel="GMAC" if result.untimed else "seconds to the first token")
    return figure


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, measure, and return the exit status."""
    parser = CommandParser.of_module("eval.cost.llm", __doc__)
    parser.add_argument(
        "--llms", nargs="+", default=["smollm2-135m"], help="shapes, directories or .gguf files (default: smollm2-135m)"
    )
    parser.add_argument(
        "--models",
        nargs="+",
        default=list(TOWERS),
        metavar="NAME[@SIZE]",
        help=f"{TOWERS_HELP} (default: {' '.join(TOWERS)})",
    )
    add_tokens(parser)
    parser.add_argument("--prompt_tokens", type=int, default=64, help="tokens of text in the prompt (default: 64)")
    add_repeats(parser, 5)
    add_arguments(parser, output="runs/bench/llm_cost.json")
    return parser.run(_run, argv)


def _run(arguments: argparse.Namespace) -> None:
    prompt = arguments.prompt_tokens
    require_positive(prompt_tokens=prompt, repeats=arguments.repeats)
    device, setting = begin(arguments, batch=1, inputs=[*arguments.llms, *arguments.models])
    towers = open_towers(arguments.models, tokens=TokenCounts.of_option(arguments.tokens))
    llms = [open_llm(name) for name in dict.fromkeys(arguments.llms)]
    results = [measure(llm, towers, prompt, setting.dtype, device, arguments.repeats) for llm in llms]
    rows = [result.as_json() for result in results]
    values = {"machine": machine(device), "prompt_tokens": prompt, **asdict(setting), "results": rows}
    sections = [section_of(result, prompt, setting) for result in results]
    publish(arguments.output, values, sections, figure_of(results))


if __name__ == "__main__":
    sys.exit(main())
