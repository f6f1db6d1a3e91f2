"""Measure how many questions about clips a model answers, by kind.

    python -m train.studies.videos.measure --model DIR --data_path test.json --video_folder test --max_frames 5 \\
        --frame_tokens 9 --train_path train.json --output scores.json

An answer counts if each of its tokens, and the one that ends it, is the most probable one after those before it. That
is so exactly when greedy decoding writes this answer, so all questions about a clip take one pass of the model.
"""

import argparse
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from sparse_vlm.command_line import CommandParser
from sparse_vlm.data.conversations.encoding import IGNORE
from sparse_vlm.data.conversations.sources import read_samples
from sparse_vlm.files import check_output_files, write_json
from train.language import vlm
from train.language.data import StageData, make_data
from train.language.data_arguments import DataArguments
from train.stages.stage import StageArguments
from train.studies.videos.clips import RATE, kind_of

BATCH = 16


def outcomes(model: Any, data: StageData, batch_size: int = BATCH) -> Iterator[bool]:
    """Yield for each question, in the order of the data, whether the model gives its answer.

    Args:
        model: the model.
        data: conversations whose turns are independent.
        batch_size: conversations per batch.
    """
    loader: Any = DataLoader(data.training, batch_size=batch_size, collate_fn=list)
    for items in tqdm(loader, "clips"):
        turns = [
            (number, segment)
            for number, item in enumerate(items)
            for segment, target in zip(item["row"].segments, item["row"].targets, strict=True)
            if target != IGNORE
        ]
        batch = data.collator(items)
        with torch.inference_mode():
            logits = model(**{name: value for name, value in batch.items() if "labels" not in name}).logits
        right = dict.fromkeys(turns, True)
        for turn, hit in zip(turns, (logits.argmax(-1).flatten() == batch["labels"]).tolist(), strict=True):
            right[turn] &= hit
        yield from right.values()


def score(questions: Sequence[tuple[str, str]], right: Sequence[bool]) -> dict[str, Any]:
    """Return the accuracy and the number of questions, overall and by kind.

    Args:
        questions: (text, answer).
        right: one per question.
    """
    by_kind: dict[str, list[bool]] = defaultdict(list)
    for (text, _), hit in zip(questions, right, strict=True):
        by_kind[kind_of(text)].append(hit)
    kinds = {kind: {"accuracy": sum(hits) / len(hits), "questions": len(hits)} for kind, hits in by_kind.items()}
    return {"accuracy": sum(right) / len(right), "questions": len(right), "by_kind": kinds}


def majority(train: Sequence[tuple[str, str]], questions: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Return the scores of always giving the answer that is most frequent in training for the kind of question."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for text, answer in train:
        counts[kind_of(text)][answer] += 1
    frequent = {kind: counter.most_common(1)[0][0] for kind, counter in counts.items()}
    return score(questions, [answer == frequent[kind_of(text)] for text, answer in questions])


def questions_of(path: str) -> list[tuple[str, str]]:
    """Read the questions of a LLaVA JSON file, (text, answer)."""
    turns = [[turn["value"].removeprefix("<video>\n") for turn in one["conversations"]] for one in read_samples(path)]
    return [pair for texts in turns for pair in zip(texts[::2], texts[1::2], strict=True)]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status."""
    parser = CommandParser.of_module("train.studies.videos.measure", __doc__)
    parser.add_argument("--model", required=True, help="model directory")
    parser.add_argument("--data_path", required=True, help="LLaVA JSON of the questions")
    parser.add_argument("--video_folder", default=".", help="folder of the clips (default: .)")
    parser.add_argument("--train_path", required=True, help="training data, for the most frequent answers")
    parser.add_argument("--max_frames", type=int, help="frames of a clip, at equal distances (default: the model's)")
    parser.add_argument("--frame_tokens", type=int, help="visual tokens per frame (default: the model's)")
    parser.add_argument("--output", type=Path, required=True, help="JSON file for the scores")
    return parser.run(_run, argv)


def _run(arguments: argparse.Namespace) -> None:
    check_output_files({"--output": arguments.output}, [arguments.model, arguments.data_path, arguments.train_path])
    args = StageArguments(output_dir=str(arguments.output.parent / "unused"), use_cpu=True, bf16=False)
    model, processor = vlm.load(vlm.ModelArguments(arguments.model), args)

    data_args = DataArguments(
        arguments.data_path,
        video_folder=arguments.video_folder,
        independent_turns=True,
        fps=RATE,
        max_frames=arguments.max_frames,
        frame_tokens=arguments.frame_tokens,
    )
    data = make_data(data_args, args, model, processor, language=True)
    right = list(outcomes(model.eval(), data))
    questions = questions_of(arguments.data_path)
    floor = majority(questions_of(arguments.train_path), questions)
    write_json(arguments.output, {"scores": score(questions, right), "majority": floor})


if __name__ == "__main__":
    sys.exit(main())
