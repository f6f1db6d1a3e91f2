"""Accuracy against mean tokens if an encoder spends more of them on the images of which it is unsure (easy-VQA).

    python -m eval.encoders.budget --teacher runs/quickstart/teacher --encoder runs/quickstart/encoder --few 4 --more 16

Every image is encoded with few tokens, and a share of the images, those with the least sure embeddings, once more with
more tokens. Two measures of sureness are compared:

- spread: the cosine of the embeddings with `few` and with twice as many tokens, which needs no classes; all images
  then cost three times `few`, and sure images are classified by the second embedding;
- margin: the difference of the two largest probabilities among the classes.

Source: ours.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor

from eval.encoders.arguments import add_arguments, add_encoder, add_teacher, begin, write_result
from eval.encoders.pair import open_pair
from eval.encoders.zero_shot import easy_vqa_images, embed_labelled
from eval.intervals import wilson_interval
from eval.tables import rich_table
from sparse_vlm.bootstrap.zero_shot import class_embeddings, hits
from sparse_vlm.command_line import CommandParser
from sparse_vlm.errors import UserError

SHARES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
LOGIT_SCALE = 100.0  # CLIP's largest


def margins(embeddings: Tensor, classes: Tensor) -> Tensor:
    """Difference of the two largest class probabilities: float[N, D], unit float[K, D] -> float[N]."""
    logits = LOGIT_SCALE * F.normalize(embeddings, dim=-1) @ classes.T
    first, second = logits.softmax(-1).topk(2).values.unbind(-1)
    return first - second


def spend(
    sureness: Tensor, correct: Tensor, correct_with_more: Tensor, tokens: float, more: int
) -> list[dict[str, Any]]:
    """Accuracy and mean tokens for each share of the least sure images that gets more tokens.

    Args:
        sureness: float[N], larger if an image is more certain.
        correct: bool[N], with the tokens that every image gets.
        correct_with_more: bool[N], with more tokens.
        tokens: tokens that every image costs.
        more: additional tokens of an unsure image.
    """
    order, rows = sureness.argsort(stable=True), []
    for share in SHARES:
        again = order[: round(share * len(order))]
        right = correct.clone()
        right[again] = correct_with_more[again]
        hit, count = int(right.sum()), len(right)
        rows.append(
            {
                "share": share,
                "mean_tokens": tokens + more * len(again) / count,
                "accuracy": hit / count,
                "confidence_95": list(wilson_interval(hit, count)),
            }
        )
    return rows


def evaluate(
    embeddings: Mapping[int, Tensor], classes: Tensor, labels: Tensor, few: int, more: int
) -> dict[str, list[dict[str, Any]]]:
    """Compute the rows of both measures.

    Args:
        embeddings: float[N, D] with `few`, 2 · `few` and `more` tokens.
        classes: unit embeddings float[K, D].
        labels: int64[N].
        few, more: numbers of tokens.
    """
    correct = {count: hits(each, classes, labels) for count, each in embeddings.items()}
    spread = F.cosine_similarity(embeddings[few], embeddings[2 * few])
    margin = margins(embeddings[few], classes)
    return {
        "spread": spend(spread, correct[2 * few], correct[more], 3 * few, more),
        "margin": spend(margin, correct[few], correct[more], few, more),
    }


def measure(
    teacher_spec: str,
    encoder_dir: Path,
    few: int,
    more: int,
    split: Literal["train", "test"] = "test",
    batch_size: int = 64,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    """Measure an encoder on easy-VQA; the arguments are those of `eval.encoders.zero_shot`."""
    if not 1 <= few < more:
        raise UserError(f"--few must be at least 1 and less than --more, got {few} and {more}.")
    text, encoders = open_pair(teacher_spec, encoder_dir, device, dtype, (few, 2 * few, more))
    labels = easy_vqa_images(split)
    classes = class_embeddings(text, labels.classes).cpu()
    names = {f"student_{count}_tokens": count for count in (few, 2 * few, more)}
    students = {name: encoders[name] for name in names}
    embedded = embed_labelled(students, labels, batch_size, device=device, dtype=dtype)
    embeddings = {names[name]: each for name, each in embedded.items()}
    rows = evaluate(embeddings, classes, labels.values, few, more)
    return {"few": few, "more": more, "images": len(labels.paths), **rows}


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, measure, and return the exit status."""
    parser = CommandParser.of_module("eval.encoders.budget", __doc__)
    add_teacher(parser, "open_clip:NAME/TAG or a directory of open_clip")
    add_encoder(parser)
    parser.add_argument("--few", type=int, default=4, help="latent tokens for every image (default: 4)")
    parser.add_argument("--more", type=int, default=16, help="latent tokens for unsure images (default: 16)")
    parser.add_argument("--split", choices=["train", "test"], default="test", help="split of easy-VQA (default: test)")
    add_arguments(parser)
    return parser.run(_run, argv)


def _run(arguments: argparse.Namespace) -> None:
    device, dtype = begin(arguments, arguments.teacher)
    result = measure(
        arguments.teacher,
        arguments.encoder,
        arguments.few,
        arguments.more,
        arguments.split,
        arguments.batch_size,
        device=device,
        dtype=dtype,
    )
    write_result(arguments.output, result, dtype)
    head = [
        "unsure images",
        *(f"{name}, {unit}" for name in ("spread", "margin") for unit in ("mean tokens", "accuracy")),
    ]
    rows = [head]
    for pair in zip(result["spread"], result["margin"], strict=True):
        cells = (text for row in pair for text in (f"{row['mean_tokens']:.1f}", f"{row['accuracy']:.2%}"))
        rows.append([f"{pair[0]['share']:.0%}", *cells])
    title = f"{result['few']} tokens, {result['more']} for unsure images ({result['images']} images)"
    Console().print(rich_table(rows, title, ""))


if __name__ == "__main__":
    sys.exit(main())
