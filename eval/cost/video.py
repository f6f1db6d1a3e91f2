"""Cost of a minute of video: the encoder, the prefill of its tokens, and the keys and values that they leave.

    python -m eval.cost.video --llms smollm2-135m vicuna-7b
    python -m eval.cost.video --models ENCODER_DIR timm:vit_so400m_patch14_siglip_384 --pooled_tokens 196
    python -m eval.cost.video --llms smollm2-135m --tokens 9 --fps 1 --seconds 3600

Everything is counted on the meta device, nothing is timed, so that models of any size take seconds. Prefill is the
projector and the LLM on the tokens of all frames, without a question; attention counts as a full square, as without a
causal mask. A dense ViT encodes its own number of tokens, of which --pooled_tokens enter the LLM, as in
LLaVA-NeXT-Video (24 × 24 → 12 × 12). Writes FILE.json, FILE.md and FILE.png.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from matplotlib.figure import Figure

from eval.cost.arguments import TOWERS_HELP, add_output
from eval.cost.llm import count
from eval.cost.report import Section, check_report, draw_stacked, publish
from sparse_vlm.command_line import CommandParser
from sparse_vlm.dtypes import DTYPES
from sparse_vlm.encoder.token_counts import TokenCounts
from sparse_vlm.errors import UserError
from sparse_vlm.measure.llms import LLM, open_llm
from sparse_vlm.measure.timing import require_positive
from sparse_vlm.measure.towers import Tower, open_towers
from sparse_vlm.videos.sampling import FPS

TOWERS = ("sparseformer-clip-l@336", "timm:vit_large_patch14_clip_quickgelu_336")
TOKENS = "4,9,16,64,144"


@dataclass(frozen=True)
class Cost:
    """Cost of a video.

    Attributes:
        tower: the vision tower.
        frame_tokens: tokens of a frame that enter the LLM.
        frames: number of frames.
        encoder_gmacs: 1e9 multiply-accumulates of the tower on all frames.
        prefill_gmacs: those of the projector and the LLM on the tokens of all frames.
        cache_bytes: size of their keys and values.
    """

    tower: Tower
    frame_tokens: int
    frames: int
    encoder_gmacs: float
    prefill_gmacs: float
    cache_bytes: int

    @property
    def tokens(self) -> int:
        """Visual tokens of all frames."""
        return self.frames * self.frame_tokens

    def __str__(self) -> str:
        return f"{self.tower.name}@{self.tower.image_size}, {self.frame_tokens}"


def cost_of(tower: Tower, frame_tokens: int, frames: int, llm: LLM, dtype: torch.dtype) -> Cost:
    """Count the cost of a video whose frames have `frame_tokens` tokens each in the LLM."""
    whole = count(replace(tower, tokens=frames * frame_tokens), llm, 0, dtype)
    return Cost(tower, frame_tokens, frames, frames * tower.gmacs, whole.prefill_gmacs, whole.cache_bytes)


def section_of(llm: LLM, rows: Sequence[Cost], seconds: float, fps: float, dtype: str) -> Section:
    """Tabulate the costs with an LLM."""
    heading = ["tower", "image", "tokens a frame", "tokens", "encoder GMAC", "prefill GMAC", "keys and values, MB"]
    cells = [
        [
            row.tower.name,
            str(row.tower.image_size),
            str(row.frame_tokens),
            f"{row.tokens:,}",
            f"{row.encoder_gmacs:,.0f}",
            f"{row.prefill_gmacs:,.0f}",
            f"{row.cache_bytes / 1e6:,.1f}",
        ]
        for row in rows
    ]
    title = f"{llm.name} ({llm.parameters / 1e6:,.0f}M): {seconds:g} s of video at {fps:g} frames per second, {dtype}"
    return Section(title, [heading, *cells])


def figure_of(llms: Sequence[LLM], costs: Sequence[Sequence[Cost]]) -> Figure:
    """Draw a panel for each LLM: GMACs of encoder and prefill, stacked."""
    figure = Figure(figsize=(7, 0.6 + 1.9 * len(llms)), layout="constrained")
    for axes, llm, rows in zip(figure.subplots(len(llms), squeeze=False)[:, 0], llms, costs, strict=True):
        encoder, prefill = [row.encoder_gmacs for row in rows], [row.prefill_gmacs for row in rows]
        draw_stacked(axes, list(map(str, rows)), {"encoder": encoder, "prefill": prefill})
        axes.set(title=llm.name, xlabel="GMAC")
    return figure


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, count, and return the exit status."""
    parser = CommandParser.of_module("eval.cost.video", __doc__)
    parser.add_argument(
        "--llms",
        nargs="+",
        default=["smollm2-135m", "vicuna-7b"],
        help="shapes, directories or .gguf files (default: smollm2-135m vicuna-7b)",
    )
    parser.add_argument(
        "--models",
        nargs="+",
        default=list(TOWERS),
        metavar="NAME[@SIZE]",
        help=f"{TOWERS_HELP} (default: {' '.join(TOWERS)})",
    )
    parser.add_argument(
        "--tokens",
        default=TOKENS,
        metavar="COUNTS",
        help=f"tokens a frame of every SparseFormer (default: {TOKENS})",
    )
    parser.add_argument(
        "--pooled_tokens", type=int, default=144, help="tokens a frame of a dense ViT in the LLM (default: 144)"
    )
    parser.add_argument("--fps", type=float, default=FPS, help=f"frames per second (default: {FPS:g})")
    parser.add_argument("--seconds", type=float, default=60.0, help="length of the video (default: 60)")
    parser.add_argument(
        "--dtype", choices=sorted(DTYPES), default="bfloat16", help="of the keys and values (default: bfloat16)"
    )
    add_output(parser, "runs/bench/video_cost.json")
    return parser.run(_run, argv)


def _run(arguments: argparse.Namespace) -> None:
    check_report(arguments.output, [*arguments.llms, *arguments.models])
    require_positive(pooled_tokens=arguments.pooled_tokens)
    fps, seconds = arguments.fps, arguments.seconds
    if not (math.isfinite(fps * seconds) and fps > 0 and seconds > 0):
        raise UserError(f"--fps and --seconds must be numbers above 0, got {fps:g} and {seconds:g}.")
    frames = max(1, round(fps * seconds))
    dtype: str = arguments.dtype
    tokens = TokenCounts.of_option(arguments.tokens)
    sparse = any(tower.sparse for tower in open_towers(arguments.models))
    towers = open_towers(arguments.models, tokens=tokens if sparse else ())
    llms = [open_llm(name) for name in dict.fromkeys(arguments.llms)]
    counts = [tower.tokens if tower.sparse else _pooled(tower, arguments.pooled_tokens) for tower in towers]
    costs = [
        [cost_of(tower, tokens, frames, llm, DTYPES[dtype]) for tower, tokens in zip(towers, counts, strict=True)]
        for llm in llms
    ]
    results: list[dict[str, Any]] = [
        {"llm": llm.name, "parameters": llm.parameters, "rows": [asdict(row) for row in rows]}
        for llm, rows in zip(llms, costs, strict=True)
    ]
    values = {"fps": fps, "seconds": seconds, "frames": frames, "dtype": dtype, "results": results}
    sections = [section_of(llm, rows, seconds, fps, dtype) for llm, rows in zip(llms, costs, strict=True)]
    publish(arguments.output, values, sections, figure_of(llms, costs))


def _pooled(tower: Tower, tokens: int) -> int:
    """Return the number of tokens that enter the LLM.

    Raises:
        UserError: the tower has fewer.
    """
    if tokens > tower.tokens:
        raise UserError(
            f"{tower} has {tower.tokens} tokens, which cannot be pooled to --pooled_tokens {tokens}: lower it."
        )
    return tokens


if __name__ == "__main__":
    sys.exit(main())
