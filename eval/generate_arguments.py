"""Arguments of `python -m eval.generate` and the questions that they select, checked before the model is loaded."""

import argparse
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.benchmarks import find_benchmark
from eval.parts import first_questions
from eval.scoring.protocol import Benchmark, Question, Video
from eval.selection import add_benchmarks, add_path, benchmark_names, file_of, path_of
from sparse_vlm.command_line import add_device_arguments, add_video_arguments
from sparse_vlm.errors import UserError
from sparse_vlm.files import check_output_files
from sparse_vlm.vlm.videos.processor import VideoOptions
from sparse_vlm.vlm.views import check_count

# Size of the parts that a process claims. It is the same in all processes, whatever the options.
IMAGES_PER_PART = 48


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `python -m eval.generate`."""
    add_benchmarks(
        parser,
        answers=".jsonl file to write or to continue; for several benchmarks: a folder",
        limit="answer only the first questions, this many",
    )
    parser.add_argument("--model", type=Path, required=True, help="model directory")
    add_path(
        parser,
        "--images",
        "folder of the benchmark's images; for several benchmarks: NAME=FOLDER for each, or one folder for all",
    )
    add_path(parser, "--videos", "folder of the videos of a benchmark about videos; for several benchmarks as --images")
    parser.add_argument("--no_image", action="store_true", help="ask without the images or videos: the no-image floor")
    parser.add_argument(
        "--visual_tokens",
        type=int,
        metavar="K",
        help="number of visual tokens of each image (default: the model's own)",
    )
    parser.add_argument("--batch_size", type=int, default=96, help="questions generated for together (default: 96)")
    parser.add_argument(
        "--images_in_memory",
        type=int,
        default=IMAGES_PER_PART,
        metavar="N",
        help="images whose keys and values are in memory together, at most %(default)s and --batch_size (default: "
        "%(default)s)",
    )
    add_video_arguments(parser.add_argument_group("benchmarks about videos"))
    add_device_arguments(parser)
    parser.add_argument("--cuda_graphs", action="store_true", help="run the SparseFormer from CUDA graphs")
    how = parser.add_argument_group("generation")
    how.add_argument("--temperature", type=float, default=0.0, help="0: greedy; more: sample (default: 0)")
    how.add_argument("--top_p", type=float, default=1.0, help="nucleus of sampling (default: 1)")
    how.add_argument("--seed", type=int, default=0, help="seed of sampling (default: 0)")
    how.add_argument("--num_beams", type=int, default=1, help="beams of beam search (default: 1, no beam search)")
    how.add_argument("--max_new_tokens", type=int, help="maximum length of an answer (default: the benchmark's)")
    how.add_argument("--system", help="system prompt (default: the chat template's own)")


@dataclass(frozen=True)
class Task:
    """The questions to answer of one benchmark."""

    name: str
    benchmark: Benchmark
    questions: list[Question]
    places: list[int]
    answers: Path


def _task(arguments: argparse.Namespace, name: str, names: Sequence[str]) -> Task:
    benchmark = find_benchmark(name)
    file = path_of("--questions", arguments.questions, name, names)
    answers = file_of("--answers", arguments.answers, name, names, ".jsonl")
    assert answers is not None  # required
    check_output_files({"--answers": answers}, [file])
    if answers.exists() and not answers.is_file():
        raise UserError(
            f"--answers {answers} is not a regular file, so a run could not resume from it. Choose another."
        )
    option = f"--{benchmark.medium}s"
    folder = path_of(option, getattr(arguments, option[2:]), name, names)
    if folder is None and benchmark.medium == "video" and not arguments.no_image:
        raise UserError(f"{name} asks about videos: give their folder with --videos, or ask without with --no_image.")
    questions = benchmark.load_questions(file, folder)
    places = first_questions(benchmark, questions, arguments.limit)
    if not arguments.no_image:
        check_images(questions, places)
    return Task(name, benchmark, questions, places, answers)


def read_tasks(arguments: argparse.Namespace) -> list[Task]:
    """Read the questions of every chosen benchmark.

    Raises:
        UserError: unknown benchmark, damaged question file, missing image, or answers file that cannot be written.
    """
    names = benchmark_names(arguments.benchmarks)
    media = {find_benchmark(name).medium for name in names}
    for medium in ("image", "video"):
        if medium not in media and getattr(arguments, f"{medium}s"):
            raise UserError(f"None of {', '.join(names)} asks about {medium}s: leave out --{medium}s.")
    check_tokens(arguments, media)
    return [_task(arguments, name, names) for name in names]


def video_options(arguments: argparse.Namespace) -> VideoOptions:
    """Return how videos are shown."""
    return VideoOptions(arguments.fps, arguments.max_frames, arguments.frame_tokens, arguments.timestamps)


def check_tokens(arguments: argparse.Namespace, media: Collection[str]) -> None:
    """Check the options for visual tokens and frames.

    Args:
        arguments: the parsed command line.
        media: what the chosen benchmarks ask about.

    Raises:
        UserError: a number is not positive, or an option contradicts another one or the benchmarks.
    """
    if video_options(arguments) != VideoOptions():
        named = "--fps, --max_frames, --frame_tokens and --timestamps"
        if "video" not in media:
            raise UserError(f"{named} are for benchmarks about videos: leave them out.")
        if arguments.no_image:
            raise UserError(f"--no_image asks without videos: leave out {named}.")
    if "video" in media and arguments.cuda_graphs and not arguments.no_image:
        raise UserError("--cuda_graphs does not run videos: leave it out.")
    if arguments.visual_tokens is None:
        return
    if "image" not in media:
        raise UserError("--visual_tokens is for images: write --frame_tokens for the tokens of a frame.")
    check_count(arguments.visual_tokens)
    if arguments.no_image:
        raise UserError("--no_image asks without visual tokens: leave out --visual_tokens.")
    if arguments.cuda_graphs:
        raise UserError("--cuda_graphs runs the model's own number of visual tokens only: leave out --visual_tokens.")


def check_images(questions: Sequence[Question], places: Sequence[int]) -> None:
    """Check that the image or video files of the questions at `places` exist.

    Raises:
        UserError: some do not; the message names the first ones and their number.
    """
    files = dict.fromkeys(questions[place].image for place in places)
    videos = dict.fromkeys(file.path for file in files if isinstance(file, Video))
    images = [file for file in files if isinstance(file, Path)]
    _check_files("image", images, [path for path in images if not path.is_file()])
    _check_files("video", list(videos), [path for path in videos if not path.exists()])


def _check_files(kind: str, paths: Sequence[Path], missing: Sequence[Path]) -> None:
    if missing:
        more = f", e.g. also {', '.join(path.name for path in missing[1:4])}" if len(missing) > 1 else ""
        raise UserError(
            f"The {kind} {missing[0]} does not exist; {len(missing)} of {len(paths)} {kind}s are missing{more}. Check "
            f"--{kind}s."
        )
