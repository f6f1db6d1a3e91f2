"""Zero-shot classification and retrieval by clip-benchmark, for a CLIP-like teacher and the SparseFormer made from it.

    python -m eval.encoders.clip_benchmark --teacher open_clip:NAME/TAG --encoder DIR --datasets cars
    python -m eval.encoders.clip_benchmark --teacher DIR --encoder DIR --datasets cars flickr30k --output out.json

A dataset is a folder in clip-benchmark's WebDataset format (classnames.txt, zeroshot_classification_templates.txt,
dataset_type.txt, test/nshards.txt, test/0.tar …). DataComp's evaluation sets are published in it, and
`clip_benchmark_export_wds` writes any other set, such as ImageNet. Class names, prompts and metrics are
clip-benchmark's.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from timm.utils import accuracy
from torch import Tensor
from torch.utils.data import DataLoader

from eval.encoders.arguments import add_arguments, add_encoder, add_teacher, begin, write_result
from eval.encoders.pair import open_pair
from eval.tables import rich_table
from sparse_vlm.command_line import CommandParser
from sparse_vlm.encoder import Preprocessing
from sparse_vlm.encoder.preprocessing import Transform
from sparse_vlm.errors import UserError

RECALLS = [1, 5, 10]


@dataclass(frozen=True)
class TwoSides:
    """A model as clip-benchmark calls it: images float[B, 3, H, W], tokens int64[B, L] -> embeddings float[B, D]."""

    encode_image: Callable[[Tensor], Tensor]
    encode_text: Callable[[Tensor], Tensor]


def evaluate_set(
    model: TwoSides,
    tokenizer: Callable[[list[str]], Tensor],
    preprocessing: Preprocessing,
    folder: Path,
    *,
    split: str = "test",
    batch_size: int = 64,
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """Compute clip-benchmark's metrics of a model on one dataset.

    Args:
        model: on `device`.
        tokenizer: captions -> int64[B, L].
        preprocessing: preprocessing that the model's images need.
        folder: the dataset, see above.
        split: a folder in it.
        batch_size: images computed together.
        device: where the model is.

    Returns:
        "acc1", "acc5" (of 5 and more classes) and "mean_per_class_recall"; for several labels per image
        "mean_average_precision"; for captions "image_retrieval_recall@1" and so on.
    """
    try:
        from clip_benchmark.datasets import builder
        from clip_benchmark.metrics import zeroshot_classification, zeroshot_retrieval
    except ImportError as error:
        raise UserError(f"Zero-shot evaluation needs clip-benchmark ({error}): pip install clip-benchmark.") from None
    if not (folder / split / "nshards.txt").is_file():
        raise UserError(f"{folder} is not a dataset of clip-benchmark: it has no {split}/nshards.txt.")
    kind = folder / "dataset_type.txt"
    retrieval = kind.is_file() and kind.read_text(encoding="utf-8").strip() == "retrieval"
    dataset = builder.build_wds_dataset(folder.name, Transform(preprocessing), split=split, data_dir=str(folder))
    if not retrieval and not (dataset.classes and dataset.templates):
        raise UserError(
            f"{folder} needs classnames.txt and zeroshot_classification_templates.txt, with one entry per line."
        )
    place = str(device)  # clip-benchmark passes it to torch.autocast, which takes no torch.device
    collate = builder.image_captions_collate_fn if retrieval else torch.utils.data.default_collate
    batches = DataLoader(dataset.batched(batch_size, collation_fn=collate), batch_size=None)
    if retrieval:
        return zeroshot_retrieval.evaluate(model, batches, tokenizer, place, amp=False, recall_k_list=RECALLS)
    classifier = zeroshot_classification.zero_shot_classifier(
        model, tokenizer, dataset.classes, dataset.templates, place, amp=False
    )
    logits, labels = zeroshot_classification.run_classification(model, classifier, batches, place, amp=False)
    if labels.ndim == 2:  # any number of labels per image
        precisions = zeroshot_classification.average_precision_per_class(logits, labels)
        return {"mean_average_precision": precisions.mean().item()}
    return accuracies(logits, labels)


def accuracies(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Compute top-1 accuracy, top-5 accuracy (of 5 and more classes) and mean per-class recall.

    clip-benchmark's own `accuracy` fails with NumPy 2.4.

    Args:
        logits: float[N, K].
        labels: int64[N].
    """
    from sklearn.metrics import balanced_accuracy_score

    top = (1, 5) if logits.shape[1] >= 5 else (1,)
    scores = {f"acc{k}": value.item() / 100 for k, value in zip(top, accuracy(logits, labels, top), strict=True)}
    return scores | {"mean_per_class_recall": balanced_accuracy_score(labels, logits.argmax(dim=1))}


def compare(
    teacher_spec: str,
    encoder_dir: Path,
    folders: Sequence[Path],
    *,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    """Evaluate teacher and student on datasets, both with the teacher's text encoder.

    Args:
        teacher_spec, encoder_dir, device, dtype: see `open_pair`.
        folders: the datasets.
        batch_size: see `evaluate_set`.

    Returns:
        dataset -> {"teacher": metrics, "student": metrics}
    """
    text, encoders = open_pair(teacher_spec, encoder_dir, device, dtype)
    return {
        folder.name: {
            name: evaluate_set(
                TwoSides(encoder.embed, text.clip.encode_text),
                text.tokenizer,
                encoder.preprocessing,
                folder,
                batch_size=batch_size,
                device=device,
            )
            for name, encoder in encoders.items()
        }
        for folder in folders
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, evaluate, and return the exit status."""
    parser = CommandParser.of_module("eval.encoders.clip_benchmark", __doc__)
    add_teacher(parser, "open_clip:NAME/TAG or a directory of open_clip")
    add_encoder(parser)
    parser.add_argument("--datasets", type=Path, nargs="+", required=True, help="folders in clip-benchmark's format")
    add_arguments(parser)
    return parser.run(_run, argv)


def _run(arguments: argparse.Namespace) -> None:
    device, dtype = begin(arguments, arguments.teacher, *arguments.datasets)
    results = compare(
        arguments.teacher,
        arguments.encoder,
        arguments.datasets,
        batch_size=arguments.batch_size,
        device=device,
        dtype=dtype,
    )
    write_result(arguments.output, {"datasets": results}, dtype)
    rows = [["dataset: metric", "teacher", "student"]]
    for dataset, both in results.items():
        for metric, value in both["teacher"].items():
            rows.append([f"{dataset}: {metric}", f"{value:.2%}", f"{both['student'][metric]:.2%}"])
    Console().print(rich_table(rows, "zero-shot, clip-benchmark", ""))


if __name__ == "__main__":
    sys.exit(main())
