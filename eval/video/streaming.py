"""The cost of a stream: a frame, the first token of an answer, and memory, after some minutes of video.

    python -m eval.video.streaming --model DIR --minutes 1 10 --threads 2
    python -m eval.video.streaming --model DIR --minutes 1 10 --threads 2 --max_frames 512

Frames of noise are added without pauses, as many as the minutes have at --fps. After each of the minutes, 9 questions
are asked for one token each. Wall-clock and CPU seconds (of all threads) are medians, those of a frame over the last 64
frames. Writes FILE.json and FILE.md.
"""

import argparse
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image

from eval.cost.arguments import add_arguments, begin
from eval.tables import markdown_table, rich_table
from sparse_vlm.command_line import CommandParser
from sparse_vlm.dtypes import DTYPES
from sparse_vlm.files import write_json, write_text
from sparse_vlm.measure.timing import clock, machine, require_positive
from sparse_vlm.vlm.loading import load_vlm
from sparse_vlm.vlm.videos.processor import VideoOptions
from sparse_vlm.vlm.videos.stream import VideoStream

QUESTIONS = 9
LAST = 64  # frames whose time counts
SIDE = 128  # pixels of a frame before it is preprocessed


class Seconds(NamedTuple):
    """Time of one call: on the wall clock, and of the CPU in all threads."""

    wall: float
    cpu: float


@dataclass
class Measurement:
    """The state of a stream.

    Attributes:
        minutes: of video so far.
        frames: that the model sees.
        frame: median time of a frame.
        slowest_frame: the longest time of a frame.
        first_token: median time from a question to its first token.
        cache_bytes: keys and values.
        peak_bytes: most memory of the process so far.
    """

    minutes: int
    frames: int
    frame: Seconds
    slowest_frame: Seconds
    first_token: Seconds
    cache_bytes: int
    peak_bytes: int


def measure(stream: VideoStream, minutes: Sequence[int]) -> Iterator[Measurement]:
    """Add frames, and measure after each of the ascending minutes."""
    generator, device = torch.Generator().manual_seed(0), stream.model.device
    frames: list[Seconds] = []
    for end in minutes:
        while stream.seen < end * 60 * stream.fps:
            pixels = torch.randint(0, 256, (SIDE, SIDE, 3), generator=generator, dtype=torch.uint8)
            image = Image.fromarray(pixels.numpy())
            frames.append(_timed(lambda image=image: stream.add(image), device))  # type: ignore[misc]
        answers = [_timed(lambda: list(stream.ask("What happens?", 1)), device) for _ in range(QUESTIONS)]
        last = frames[-LAST:]
        peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        slowest = Seconds(*(max(each) for each in zip(*last, strict=True)))
        yield Measurement(end, stream.frames, _median(last), slowest, _median(answers), stream.cache_bytes, peak)


def _timed(run: Callable[[], object], device: torch.device) -> Seconds:
    start = clock(device), time.process_time()
    run()
    return Seconds(clock(device) - start[0], time.process_time() - start[1])


def _median(seconds: Sequence[Seconds]) -> Seconds:
    return Seconds(*(statistics.median(each) for each in zip(*seconds, strict=True)))


def rows_of(measurements: Sequence[Measurement]) -> list[list[str]]:
    """Tabulate measurements; times are wall-clock seconds with CPU seconds in parentheses."""
    rows = [["minutes", "frames seen", "a frame s", "slowest frame s", "first token s", "cache MiB", "peak MiB"]]
    for one in measurements:
        times = [f"{each.wall:.2f} ({each.cpu:.2f})" for each in (one.frame, one.slowest_frame, one.first_token)]
        memory = [f"{count / 2**20:,.0f}" for count in (one.cache_bytes, one.peak_bytes)]
        rows.append([str(one.minutes), str(one.frames), *times, *memory])
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, measure, and return the exit status."""
    parser = CommandParser.of_module("eval.video.streaming", __doc__)
    parser.add_argument("--model", type=Path, required=True, help="a model directory")
    parser.add_argument("--minutes", type=int, nargs="+", default=[1, 10], help="when to measure (default: 1 10)")
    parser.add_argument("--fps", type=float, default=2, help="frames per second (default: 2)")
    parser.add_argument("--frame_tokens", type=int, default=9, help="visual tokens of a frame (default: 9)")
    parser.add_argument("--max_frames", type=int, help="frames after which the older half leaves (default: 64)")
    add_arguments(parser, output="runs/bench/streaming.json")
    return parser.run(_run, argv)


def _run(arguments: argparse.Namespace) -> None:
    from rich.console import Console

    device, setting = begin(arguments, batch=1, inputs=[arguments.model])
    require_positive(minutes=arguments.minutes)
    model, processor = load_vlm(arguments.model, DTYPES[setting.dtype], device=device)
    options = VideoOptions(arguments.fps, arguments.max_frames, arguments.frame_tokens)
    stream = VideoStream(model, processor, options)
    title = f"stream: {setting}, {arguments.frame_tokens} tokens a frame, {arguments.fps:g} fps"
    values: dict[str, Any] = {"machine": machine(device), **asdict(setting)}
    found: list[Measurement] = []
    for one in measure(stream, sorted(arguments.minutes)):  # written as it goes, since the last ones take long
        found.append(one)
        write_json(arguments.output, values | {"results": [asdict(each) for each in found]})
        write_text(arguments.output.with_suffix(".md"), f"### {title}\n\n{markdown_table(rows_of(found))}\n")
    Console().print(rich_table(rows_of(found), title, ""))


if __name__ == "__main__":
    sys.exit(main())
