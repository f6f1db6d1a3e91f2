"""What LLaVA spends on a picture, with our tower beside its own: `python -m llava_patch.step_time --llm 1b`.

Real LLaVA models with random weights: LLaVA-1.5's CLIP-L/14-336 and SparseFormer-CLIP-L on the same language model, its
projector alone training (LLaVA's first stage). They take turns in one process. Output: a table, and JSON (--output).
"""

import argparse
import platform
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

import llava_patch
from sparse_vlm.errors import exit_with_sentence, unknown_choice
from sparse_vlm.files import check_output_files, write_json
from sparse_vlm.measure.timing import take_turns

LLMS = {  # "1b": the shapes of TinyLlama-1.1B
    "tiny": {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4, "num_attention_heads": 4},
    "1b": {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
    },
}
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
    """One model.

    Attributes:
        tower: as `--vision_tower` names it.
        visual_tokens: of a picture.
        tower_gmacs, prefill_gmacs: multiply-accumulates of the tower; of projector and language model on the picture
            and the text.
        tower_seconds, step_seconds: of every repeat: the tower alone; a training step of one sample, forward and back.
    """

    tower: str
    visual_tokens: int
    tower_gmacs: float
    prefill_gmacs: float
    tower_seconds: list[float]
    step_seconds: list[float]


class Contestant:
    """LLaVA's model with a tower, the projector alone training, and one sample.

    Args:
        tower: value of `--vision_tower`.
        sizes: of the language model.
    """

    def __init__(self, tower: str, sizes: dict[str, int]) -> None:
        from llava.constants import IMAGE_TOKEN_INDEX
        from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM
        from llava.train.train import ModelArguments

        torch.manual_seed(0)
        self.tower = tower
        self.model = LlavaLlamaForCausalLM(LlavaConfig(vocab_size=32000, pad_token_id=0, **sizes))
        arguments = ModelArguments(
            vision_tower=tower, mm_vision_select_layer=-2, mm_projector_type="mlp2x_gelu", mm_patch_merge_type="flat"
        )
        self.model.get_model().initialize_vision_modules(arguments)
        self.model.requires_grad_(False)
        self.model.get_model().mm_projector.requires_grad_(True)
        side = self.model.get_vision_tower().config.image_size
        words = torch.randint(3, 32000, (1, TEXT_TOKENS))
        self.sample: dict[str, Any] = {
            "input_ids": torch.cat([torch.tensor([[1, IMAGE_TOKEN_INDEX]]), words], dim=1),
            "images": torch.randn(1, 3, side, side),
        }
        self.sample["labels"] = self.sample["input_ids"].clone()
        self.sample["labels"][:, :2] = -100

    def run_tower(self) -> int:
        """Encodes the picture; returns the number of visual tokens."""
        with torch.no_grad():
            return self.model.get_vision_tower()(self.sample["images"]).shape[1]

    def run_step(self) -> None:
        """Forward and backward, without the optimiser."""
        self.model(**self.sample).loss.backward()

    def count(self) -> tuple[int, float, float]:
        """(visual tokens, GMACs of the tower, GMACs behind it), counted while they run."""
        with FlopCounterMode(display=False) as of_tower:
            tokens = self.run_tower()
        with FlopCounterMode(display=False) as of_all, torch.no_grad():
            self.model(**self.sample)
        tower, whole = (counter.get_total_flops() / 2e9 for counter in (of_tower, of_all))
        return tokens, tower, whole - tower


def _shape(llm: str) -> dict[str, int]:
    if llm not in LLMS:
        raise unknown_choice("--llm", llm, LLMS)
    return LLMS[llm]


def measure(towers: Sequence[str], llm: str, repeats: int) -> list[Measurement]:
    """Count, then time the models in turns, after one unrecorded run of everything that is timed.

    Args:
        towers: values of `--vision_tower`.
        llm: a row of `LLMS`.
        repeats: timed runs of each.

    Raises:
        UserError: unknown `llm`.
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
    """CLIP-L/14-336 with random weights as a directory, which LLaVA opens as it does the real one."""
    CLIPVisionModel(CLIPVisionConfig(**CLIP_L_336)).save_pretrained(folder)
    side = CLIP_L_336["image_size"]
    CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side}).save_pretrained(folder)
    return folder


def show(results: Sequence[Measurement], llm: str) -> None:
    """Prints medians, and everything as multiples of the last row."""
    table = Table(title=f"LLaVA, {llm} LLM, a picture and {TEXT_TOKENS} words, {torch.get_num_threads()} threads")
    for heading in ("tower", "visual tokens", "tower GMAC", "LLM GMAC", "tower s", "step s", "step, ratio"):
        table.add_column(heading, justify="left" if heading == "tower" else "right")
    last = statistics.median(results[-1].step_seconds)
    for row in results:
        tower, step = statistics.median(row.tower_seconds), statistics.median(row.step_seconds)
        cells = [f"{row.tower_gmacs:.1f}", f"{row.prefill_gmacs:.1f}", f"{tower:.2f}", f"{step:.2f}"]
        table.add_row(row.tower, str(row.visual_tokens), *cells, f"{step / last:.2f}")
    Console().print(table)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llm", default="tiny", help=" or ".join(LLMS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", help="JSON file for every measurement")
    args = parser.parse_args(argv)
    check_output_files({"--output": args.output or None})
    _shape(args.llm)  # before the models, which take their time
    torch.set_num_threads(args.threads)
    llava_patch.install()
    with tempfile.TemporaryDirectory(prefix="openai-clip-") as folder:
        results = measure([random_clip(folder), "sparseformer-clip-l?weights=random"], args.llm, args.repeats)
    if args.output:
        machine = {"threads": args.threads, "torch": torch.__version__, "processor": platform.processor()}
        write_json(args.output, {"llm": args.llm, **machine, "results": [asdict(result) for result in results]})
    show(results, args.llm)


if __name__ == "__main__":
    sys.exit(exit_with_sentence(main))
