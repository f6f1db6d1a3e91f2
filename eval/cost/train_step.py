"""Time and memory of an LLM's training step, by the number of visual tokens.

    python -m eval.cost.train_step --visual_tokens 17 49 64 196 576
    python -m eval.cost.train_step --llm tinyllama-1.1b --frozen --batch_size 2 --device cuda

Trains all weights of an LLM of SmolLM2-135M's shape (--llm), which start random, with AdamW. A sample is some visual
tokens and a short text; the loss is computed on the text. The visual tokens are random embeddings with a gradient, like
the output of a projector; the vision tower is not part of the step. All counts take turns on one model. Writes
FILE.json with every run, FILE.md and FILE.png.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.optim import AdamW
from transformers import PreTrainedModel

from eval.cost.arguments import add_arguments, add_repeats, begin
from eval.cost.report import Section, megabytes, publish
from sparse_vlm.command_line import CommandParser
from sparse_vlm.devices import peak_bytes
from sparse_vlm.dtypes import DTYPES
from sparse_vlm.measure.llms import LLM, open_llm
from sparse_vlm.measure.timing import gmacs_of, machine, require_positive, take_turns


@dataclass(frozen=True)
class StepCost:
    """Cost of a training step.

    Attributes:
        visual_tokens: visual tokens of each sample.
        gmacs: 1e9 multiply-accumulates of the batch, forward and backward.
        seconds: seconds of every recorded step.
        peak_bytes: peak memory beyond the weights and AdamW's moments.
    """

    visual_tokens: int
    gmacs: float
    seconds: list[float]
    peak_bytes: int

    @property
    def median(self) -> float:
        """Median seconds of a step."""
        return statistics.median(self.seconds)


def make_sample(llm: LLM, visual_tokens: int, text_tokens: int, batch: int) -> dict[str, Tensor]:
    """Make random inputs of a step, on torch's default device.

    Returns:
        "visual" float32[batch, visual_tokens, width] and "words" int64[batch, text_tokens].
    """
    return {
        "visual": torch.randn(batch, visual_tokens, llm.config.hidden_size),
        "words": torch.randint(llm.config.vocab_size, (batch, text_tokens)),
    }


def step(model: PreTrainedModel, optimizer: AdamW | None, visual: Tensor, words: Tensor) -> None:
    """Run a training step on the loss of the words, which follow the visual tokens; clear the gradients afterwards.

    Without an optimizer the model is frozen, and only the visual tokens get a gradient, as when a projector trains.
    """
    embedded = torch.cat([visual.detach().requires_grad_(), model.get_input_embeddings()(words)], dim=1)
    labels = torch.cat([torch.full(visual.shape[:2], -100, device=words.device), words], dim=1)
    model(inputs_embeds=embedded, labels=labels, use_cache=False).loss.backward()
    if optimizer is not None:
        optimizer.step()
        optimizer.zero_grad()


def measure(
    llm: LLM,
    visual_tokens: Sequence[int],
    text_tokens: int,
    batch: int,
    dtype: torch.dtype,
    device: torch.device,
    repeats: int,
    frozen: bool = False,
) -> tuple[list[StepCost], int]:
    """Measure the steps of all counts of visual tokens, in turns.

    Args:
        llm: the language model.
        visual_tokens: the counts.
        text_tokens: text tokens of each sample.
        batch: samples of a step.
        dtype: dtype of everything, AdamW's moments included.
        device: where to compute.
        repeats: recorded steps of each count.
        frozen: keep the LLM's weights as they are, as in the alignment.

    Returns:
        The costs, and the bytes of the weights and AdamW's moments, which are held all the time.
    """
    model = llm.load(dtype).to(device).train().requires_grad_(not frozen)
    optimizer = None if frozen else AdamW(model.parameters(), lr=1e-5)
    runs = []
    for number in visual_tokens:
        sample = {name: value.to(device) for name, value in make_sample(llm, number, text_tokens, batch).items()}
        runs.append(partial(step, model, optimizer, sample["visual"].to(dtype), sample["words"]))
    seconds = take_turns(runs, repeats, device)
    costs = [
        StepCost(number, gmacs_of(run), times, peak_bytes(run, device))
        for number, run, times in zip(visual_tokens, runs, seconds, strict=True)
    ]
    moments = (value for state in optimizer.state.values() for value in state.values()) if optimizer else ()
    return costs, sum(tensor.nbytes for tensor in (*model.parameters(), *moments))


def section_of(costs: Sequence[StepCost], held_bytes: int, title: str) -> Section:
    """Tabulate the costs; ratios are relative to the largest count of visual tokens."""
    most = max(costs, key=lambda cost: cost.visual_tokens)
    rows = [["visual tokens", "GMAC", "s", "range", "× faster", "beyond weights and moments, MB", "peak, MB"]]
    for cost in costs:
        times = [f"{cost.median:.3f}", f"{min(cost.seconds):.3f}–{max(cost.seconds):.3f}"]
        memory = [megabytes(cost.peak_bytes), megabytes(held_bytes + cost.peak_bytes)]
        ratio = f"{most.median / cost.median:.2f}"
        rows.append([str(cost.visual_tokens), f"{cost.gmacs:.1f}", *times, ratio, *memory])
    return Section(title, rows)


def figure_of(costs: Sequence[StepCost], held_bytes: int, title: str) -> Figure:
    """Plot the seconds and the memory of a step against the visual tokens."""
    ordered = sorted(costs, key=lambda cost: cost.visual_tokens)
    tokens = [cost.visual_tokens for cost in ordered]
    figure = Figure(figsize=(7.2, 3), layout="constrained")
    time_axes, memory_axes = figure.subplots(1, 2)
    time_axes.plot(tokens, [cost.median for cost in ordered], "o-")
    time_axes.set(ylabel="seconds per step", ylim=(0, None))
    memory_axes.plot(tokens, [(held_bytes + cost.peak_bytes) / 1e9 for cost in ordered], "o-", label="peak")
    memory_axes.axhline(held_bytes / 1e9, color="tab:gray", linestyle="--", label="weights, AdamW's moments")
    memory_axes.set(ylabel="memory, GB", ylim=(0, None))
    memory_axes.legend(fontsize=7, loc="lower right")
    for axes in (time_axes, memory_axes):
        axes.set(xlabel="visual tokens", xticks=tokens)
        axes.tick_params(axis="x", labelsize=6, rotation=90)
    figure.suptitle(title, fontsize=8)
    return figure


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, measure, and return the exit status."""
    parser = CommandParser.of_module("eval.cost.train_step", __doc__)
    parser.add_argument(
        "--llm",
        default="smollm2-135m",
        help="a shape of sparse_vlm/measure/llms.py, a directory or a .gguf file (default: smollm2-135m)",
    )
    counts = [17, 49, 64, 196, 576]
    parser.add_argument(
        "--visual_tokens",
        type=int,
        nargs="+",
        default=counts,
        help=f"visual tokens of each sample (default: {' '.join(map(str, counts))})",
    )
    parser.add_argument("--text_tokens", type=int, default=64, help="text tokens of each sample (default: 64)")
    parser.add_argument("--batch_size", type=int, default=1, help="samples of a step (default: 1)")
    parser.add_argument("--frozen", action="store_true", help="do not train the LLM, as in the alignment")
    add_repeats(parser, 5)
    add_arguments(parser, output="runs/bench/step_cost.json")
    return parser.run(_run, argv)


def _run(arguments: argparse.Namespace) -> None:
    text, batch, counts = arguments.text_tokens, arguments.batch_size, list(dict.fromkeys(arguments.visual_tokens))
    require_positive(visual_tokens=counts, text_tokens=text, batch_size=batch, repeats=arguments.repeats)
    device, setting = begin(arguments, batch, "training", [arguments.llm])
    llm, dtype = open_llm(arguments.llm), DTYPES[setting.dtype]
    costs, held = measure(llm, counts, text, batch, dtype, device, arguments.repeats, arguments.frozen)
    trained = "frozen" if arguments.frozen else "AdamW"
    name = f"{llm.name} ({llm.parameters / 1e6:,.0f}M, weights: {llm.weights})"
    title = f"{name}, {trained}, {text} text tokens, {setting}"
    about = {"machine": machine(device), "llm": llm.name, "weights": llm.weights, "frozen": arguments.frozen}
    values = about | {"text_tokens": text, **asdict(setting), "held_bytes": held}
    values["steps"] = [asdict(cost) | {"median": cost.median} for cost in costs]
    publish(arguments.output, values, [section_of(costs, held, title)], figure_of(costs, held, title))


if __name__ == "__main__":
    sys.exit(main())
