"""Time of LLaVA's training step with CLIP-L/14-336 and with SparseFormer-CLIP-L as the vision tower.

    python -m llava_patch.step_time --llm tinyllama-1.1b --output step_time.json

Builds real LLaVA models with random weights on the same language model; only the projector trains, as in LLaVA's first
stage. The models take turns in one process.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

import llava_patch
from sparse_vlm.command_line import CommandParser
from sparse_vlm.errors import unknown_choice
from sparse_vlm.files import check_output_files, write_json
from sparse_vlm.measure.shapes import SHAPES
from sparse_vlm.measure.timing import gmacs_of, machine, require_positive, take_turns

CLIP_L_336: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
    "image_size": 336,
}
TEXT_TOKENS = 64


@dataclass(frozen=True)
class Measurement:
    """Cost of one model.

    Attributes:
        tower: value of `--vision_tower`.
        visual_tokens: visual tokens of an image.
        tower_gmacs, prefill_gmacs: 1e9 multiply-accumulates of the tower; of projector and language model on the image
            and the text.
        tower_seconds, step_seconds: seconds of every repeat: the tower alone; a training step of one sample, forward
            and backward.
    """

    tower: str
    visual_tokens: int
    tower_gmacs: float
    prefill_gmacs: float
    tower_seconds: list[float]
    step_seconds: list[float]


class Contestant:
    """LLaVA's model with a vision tower and one sample; only the projector trains.

    Args:
        tower: value of `--vision_tower`.
        shape: arguments of the language model's configuration.
    """

    def __init__(self, tower: str, shape: dict[str, Any]) -> None:
        from llava.constants import IMAGE_TOKEN_INDEX
        from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM
        from llava.train.train import ModelArguments

        torch.manual_seed(0)
        self.tower = tower
        self.model = LlavaLlamaForCausalLM(LlavaConfig(pad_token_id=0, **shape))
        arguments = ModelArguments(
            vision_tower=tower, mm_vision_select_layer=-2, mm_projector_type="mlp2x_gelu", mm_patch_merge_type="flat"
        )
        self.model.get_model().initialize_vision_modules(arguments)
        self.model.requires_grad_(False)
        self.model.get_model().mm_projector.requires_grad_(True)
        side = self.model.get_vision_tower().config.image_size
        words = torch.randint(3, self.model.config.vocab_size, (1, TEXT_TOKENS))
        self.sample: dict[str, Any] = {
            "input_ids": torch.cat([torch.tensor([[1, IMAGE_TOKEN_INDEX]]), words], dim=1),
            "images": torch.randn(1, 3, side, side),
        }
        self.sample["labels"] = self.sample["input_ids"].clone()
        self.sample["labels"][:, :2] = -100

    def run_tower(self) -> int:
        """Encode the image and return the number of visual tokens."""
        with torch.no_grad():
            return self.model.get_vision_tower()(self.sample["images"]).shape[1]

    def run_step(self) -> None:
        """Run forward and backward, without the optimizer."""
        self.model(**self.sample).loss.backward()

    def count(self) -> tuple[int, float, float]:
        """Count visual tokens, and the GMACs of the tower and of the rest."""
        tower = gmacs_of(self.run_tower)
        with torch.no_grad():
            whole = gmacs_of(lambda: self.model(**self.sample))
        return self.run_tower(), tower, whole - tower


def _shape(llm: str) -> dict[str, Any]:
    if llm not in SHAPES:
        raise unknown_choice("--llm", llm, SHAPES)
    return SHAPES[llm]


def measure(towers: Sequence[str], llm: str, repeats: int) -> list[Measurement]:
    """Count, then time the models in turns.

    Args:
        towers: values of `--vision_tower`.
        llm: a key of `SHAPES`.
        repeats: recorded runs of each.
    """
    shape = _shape(llm)
    contestants = [Contestant(tower, shape) for tower in towers]
    counts = [contestant.count() for contestant in contestants]
    runs = [run for contestant in contestants for run in (contestant.run_tower, contestant.run_step)]
    seconds = take_turns(runs, repeats, torch.device("cpu"))
    return [
        Measurement(contestant.tower, *count, tower_seconds, step_seconds)
        for contestant, count, tower_seconds, step_seconds in zip(
            contestants, counts, seconds[::2], seconds[1::2], strict=True
        )
    ]


def random_clip(folder: str) -> str:
    """Save CLIP-L/14-336 with random weights in a directory, which LLaVA opens like the real one."""
    CLIPVisionModel(CLIPVisionConfig(**CLIP_L_336)).save_pretrained(folder)
    side = CLIP_L_336["image_size"]
    CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side}).save_pretrained(folder)
    return folder


def show(results: Sequence[Measurement], llm: str) -> None:
    """Print the medians; ratios are relative to the last row."""
    table = Table(title=f"LLaVA, {llm} LLM, an image and {TEXT_TOKENS} words, {torch.get_num_threads()} threads")
    for heading in ("tower", "visual tokens", "tower GMAC", "LLM GMAC", "tower s", "step s", "step, ratio"):
        table.add_column(heading, justify="left" if heading == "tower" else "right")
    last = statistics.median(results[-1].step_seconds)
    for row in results:
        tower, step = statistics.median(row.tower_seconds), statistics.median(row.step_seconds)
        cells = [f"{row.tower_gmacs:.1f}", f"{row.prefill_gmacs:.1f}", f"{tower:.2f}", f"{step:.2f}"]
        table.add_row(row.tower, str(row.visual_tokens), *cells, f"{step / last:.2f}")
    Console().print(table)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, measure, and return the exit status."""
    parser = CommandParser.of_module("llava_patch.step_time", __doc__)
    parser.add_argument(
        "--llm", default="llama-20m", help=f"shape of the language model: {', '.join(SHAPES)} (default: llama-20m)"
    )
    parser.add_argument("--repeats", type=int, default=5, help="recorded runs of each model (default: 5)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads (default: all)")
    parser.add_argument("--output", help="JSON file for every run")
    return parser.run(_run, argv)


def _run(arguments: argparse.Namespace) -> None:
    check_output_files({"--output": arguments.output or None})
    require_positive(repeats=arguments.repeats, threads=arguments.threads)
    _shape(arguments.llm)  # before the models are built, which takes long
    torch.set_num_threads(arguments.threads)
    llava_patch.install()
    with tempfile.TemporaryDirectory(prefix="openai-clip-") as folder:
        towers = [random_clip(folder), "sparseformer-clip-l?weights=random"]
        results = measure(towers, arguments.llm, arguments.repeats)
    if arguments.output:
        about = {"machine": machine(torch.device("cpu")), "threads": arguments.threads, "llm": arguments.llm}
        write_json(arguments.output, about | {"results": [asdict(result) for result in results]})
    show(results, arguments.llm)


if __name__ == "__main__":
    sys.exit(main())
