"""Memory and time of a training step by visual tokens.

    python -m eval.cost.train_step --visual-tokens 17 49 64 196 576

A language model of SmolLM2-135M's shape (--llm) with random weights, all of them trained by AdamW, on samples of some
visual tokens and a short text that the loss is taken of. The visual tokens are random embeddings with a gradient, as a
projector's are; the tower is not part of the step. All counts take turns on one model. It stands in eval/, with the
clock and the memory meter of the other measurements of cost, and imports nothing of train/.
Output: a table, FILE.json, FILE.md, FILE.png.
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

from eval.cost.arguments import add_arguments, begin
from eval.cost.report import Section, megabytes, publish
from sparse_vlm.devices import peak_bytes
from sparse_vlm.dtypes import DTYPES
from sparse_vlm.errors import exit_with_sentence
from sparse_vlm.measure.llms import LLM, open_llm
from sparse_vlm.measure.timing import gmacs_of, machine, require_positive, take_turns


@dataclass(frozen=True)
class StepCost:
    """A training step with so many visual tokens.

    Attributes:
        visual_tokens: of each sample.
        gmacs: 1e9 multiply-accumulates forward and backward, of the batch.
        seconds: of every recorded step.
        peak_bytes: allocated at the worst moment of a step, beyond weights and AdamW's moments.
    """

    visual_tokens: int
    gmacs: float
    seconds: list[float]
    peak_bytes: int

    @property
    def median(self) -> float:
        """Seconds of a step."""
        return statistics.median(self.seconds)


def make_sample(llm: LLM, visual_tokens: int, text_tokens: int, batch: int) -> dict[str, Tensor]:
    """Random inputs of a step on torch's default device.

    Returns:
        "visual" float32[batch, visual_tokens, width] and "words" int64[batch, text_tokens].
    """
    return {
        "visual": torch.randn(batch, visual_tokens, llm.config.hidden_size),
        "words": torch.randint(llm.config.vocab_size, (batch, text_tokens)),
    }


def step(model: PreTrainedModel, optimizer: AdamW | None, visual: Tensor, words: Tensor) -> None:
    """A training step on the loss of the words behind the visual tokens; afterwards the gradients are gone.

    Without an optimizer the model is frozen: the gradient reaches the visual tokens, as it must to train a projector.
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
    """The steps of all counts, and the bytes of the weights and of AdamW's moments, which are there all the time.

    Args:
        llm: which.
        visual_tokens: the counts.
        text_tokens: of each sample, behind them.
        batch: samples of a step.
        dtype: of everything, the moments too.
        device: where.
        repeats: recorded steps of each count.
        frozen: whether the model's own weights stay, as in the alignment.
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
    """The costs as a table; ratios are to the most visual tokens."""
    most = max(costs, key=lambda cost: cost.visual_tokens)
    rows = [["visual tokens", "GMAC", "s", "range", "× faster", "beyond weights and moments, MB", "peak, MB"]]
    for cost in costs:
        times = [f"{cost.median:.3f}", f"{min(cost.seconds):.3f}–{max(cost.seconds):.3f}"]
        memory = [megabytes(cost.peak_bytes), megabytes(held_bytes + cost.peak_bytes)]
        ratio = f"{most.median / cost.median:.2f}"
        rows.append([str(cost.visual_tokens), f"{cost.gmacs:.1f}", *times, ratio, *memory])
    return Section(title, rows)


def figure_of(costs: Sequence[StepCost], held_bytes: int, title: str) -> Figure:
    """Seconds and memory of a step against the visual tokens, side by side."""
    ordered = sorted(costs, key=lambda cost: cost.visual_tokens)
    tokens = [cost.visual_tokens for cost in ordered]
    figure = Figure(figsize=(7.2, 3), layout="constrained")
    time_axes, memory_axes = figure.subplots(1, 2)
    time_axes.plot(tokens, [cost.median for cost in ordered], "o-")
    time_axes.set(ylabel="seconds of a step", ylim=(0, None))
    memory_axes.plot(tokens, [(held_bytes + cost.peak_bytes) / 1e9 for cost in ordered], "o-", label="peak")
    memory_axes.axhline(held_bytes / 1e9, color="tab:gray", linestyle="--", label="weights, AdamW's moments")
    memory_axes.set(ylabel="memory, GB", ylim=(0, None))
    memory_axes.legend(fontsize=7, loc="lower right")
    for axes in (time_axes, memory_axes):
        axes.set(xlabel="visual tokens", xticks=tokens)
        axes.tick_params(axis="x", labelsize=6, rotation=90)
    figure.suptitle(title, fontsize=8)
    return figure


def build_parser() -> argparse.ArgumentParser:
    """The arguments of `python -m eval.cost.train_step`."""
    parser = argparse.ArgumentParser(prog="python -m eval.cost.train_step", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--llm", default="smollm2-135m", help="a shape of sparse_vlm/measure/llms.py, a directory or a .gguf file"
    )
    parser.add_argument("--visual-tokens", type=int, nargs="+", default=[17, 49, 64, 196, 576])
    parser.add_argument("--text-tokens", type=int, default=64, help="of each sample")
    parser.add_argument("--batch", type=int, default=1, help="samples of a step")
    parser.add_argument("--frozen", action="store_true", help="the LLM does not train, as in the alignment")
    add_arguments(parser, repeats=5, output="runs/bench/step_cost.json")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    arguments = build_parser().parse_args(argv)

    def run() -> None:
        text, batch, counts = arguments.text_tokens, arguments.batch, list(dict.fromkeys(arguments.visual_tokens))
        require_positive(visual_tokens=counts, text_tokens=text, batch=batch)
        device, dtype = begin(arguments)
        llm = open_llm(arguments.llm)
        costs, held = measure(llm, counts, text, batch, DTYPES[dtype], device, arguments.repeats, arguments.frozen)
        trained = "frozen" if arguments.frozen else "AdamW"
        title = (
            f"{llm.name} ({llm.parameters / 1e6:,.0f}M, weights: {llm.weights}), {trained}, {text} text tokens, "
            f"batch {batch}, {dtype}, {arguments.threads} CPU threads"
        )
        setting = {"text_tokens": text, "batch": batch, "dtype": dtype, "threads": arguments.threads}
        setting |= {"frozen": arguments.frozen}
        about = {"machine": machine(device), "llm": llm.name, "weights": llm.weights, **setting}
        values = {**about, "held_bytes": held, "steps": [asdict(cost) | {"median": cost.median} for cost in costs]}
        publish(arguments.output, values, [section_of(costs, held, title)], figure_of(costs, held, title))

    return exit_with_sentence(run)


if __name__ == "__main__":
    sys.exit(main())
