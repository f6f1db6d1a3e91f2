"""Zero-shot classification and retrieval by clip-benchmark: a CLIP-like teacher beside the SparseFormer made from it.

    python -m eval.encoders.clip_benchmark --teacher SPEC --encoder DIR --datasets FOLDER … --output clip_sets.json

A dataset is a folder in clip-benchmark's WebDataset form (classnames.txt, zeroshot_classification_templates.txt,
dataset_type.txt, test/nshards.txt, test/0.tar …), as DataComp's evaluation sets are published and as
`clip_benchmark_export_wds` writes any other, ImageNet among them. Class names, prompts and metrics are
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
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader

from sparse_vlm.bootstrap.teachers import open_teacher
from sparse_vlm.device_arguments import add_device_arguments
from sparse_vlm.devices import choose_device, choose_dtype
from sparse_vlm.encoder import Preprocessing, SparseFormer
from sparse_vlm.encoder.preprocessing import Transform
from sparse_vlm.errors import UserError, exit_with_sentence
from sparse_vlm.files import check_output_files, write_json

RECALLS = [1, 5, 10]


@dataclass(frozen=True)
class TwoSides:
    """What clip-benchmark calls a model: images float[B, 3, H, W] and tokens int64[B, L] -> embeddings float[B, D]."""

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
    """clip-benchmark's metrics of a model on one dataset.

    Args:
        model: on `device`.
        tokenizer: captions -> int64[B, L].
        preprocessing: of the model's images.
        folder: the dataset, see above.
        split: a folder in it.
        batch_size: images at a time.
        device: where the model is.

    Returns:
        "acc1", "acc5" (of 5 and more classes), "mean_per_class_recall"; of several labels per image
        "mean_average_precision"; of captions "image_retrieval_recall@1" and so on.

    Raises:
        UserError: clip-benchmark is not installed, or the folder is none of its datasets.
    """
    try:
        from clip_benchmark.datasets import builder
        from clip_benchmark.metrics import zeroshot_classification, zeroshot_retrieval
    except ImportError as error:
        raise UserError(f"Zero-shot evaluation needs clip-benchmark ({error}): pip install clip-benchmark.") from None
    if not (folder / split / "nshards.txt").is_file():
        raise UserError(f"{folder} is no dataset of clip-benchmark: it has no {split}/nshards.txt.")
    kind = folder / "dataset_type.txt"
    retrieval = kind.is_file() and kind.read_text(encoding="utf-8").strip() == "retrieval"
    dataset = builder.build_wds_dataset(folder.name, Transform(preprocessing), split=split, data_dir=str(folder))
    if not retrieval and not (dataset.classes and dataset.templates):
        raise UserError(f"{folder} needs classnames.txt and zeroshot_classification_templates.txt, one a line.")
    collate = builder.image_captions_collate_fn if retrieval else torch.utils.data.default_collate
    batches = DataLoader(dataset.batched(batch_size, collation_fn=collate), batch_size=None)
    if retrieval:
        return zeroshot_retrieval.evaluate(model, batches, tokenizer, device, amp=False, recall_k_list=RECALLS)
    classifier = zeroshot_classification.zero_shot_classifier(
        model, tokenizer, dataset.classes, dataset.templates, device, amp=False
    )
    logits, labels = zeroshot_classification.run_classification(model, classifier, batches, device, amp=False)
    if labels.ndim == 2:  # any number of labels for each image
        precisions = zeroshot_classification.average_precision_per_class(logits, labels)
        return {"mean_average_precision": precisions.mean().item()}
    return accuracies(logits, labels)


def accuracies(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Top-1 and top-5 accuracy (the latter of 5 and more classes) and the mean over classes of their top-1 accuracy.

    clip-benchmark has the same, in a form that NumPy 2.4 refuses.

    Args:
        logits: float[N, K].
        labels: int64[N].
    """
    ranks = logits.argsort(dim=1, descending=True)
    right = ranks[:, 0] == labels
    by_class = [right[labels == label].float().mean() for label in labels.unique()]
    scores = {"acc1": right.float().mean().item(), "mean_per_class_recall": torch.stack(by_class).mean().item()}
    if logits.shape[1] >= 5:
        scores["acc5"] = (ranks[:, :5] == labels[:, None]).any(dim=1).float().mean().item()
    return scores


def compare(
    teacher_spec: str,
    encoder_dir: Path,
    folders: Sequence[Path],
    *,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    """Teacher and student, which share the teacher's text side, on datasets.

    Args:
        teacher_spec: see `open_teacher`; of a model with a text side.
        encoder_dir: of `SparseFormer.save_pretrained`.
        folders: of the datasets.
        batch_size, device: see `evaluate_set`.
        dtype: of both image sides; the text side keeps its own, and embeddings are compared in float32.

    Returns:
        dataset -> {"teacher": metrics, "student": metrics}

    Raises:
        UserError: the teacher has no text side, or something cannot be opened.
    """
    teacher = open_teacher(teacher_spec).to(device)
    if teacher.text is None:
        raise UserError(f"The teacher {teacher_spec!r} has no text side; zero-shot evaluation needs an open_clip one.")
    teacher.trunk.to(dtype)
    student = SparseFormer.from_pretrained(encoder_dir).to(device, dtype)
    encode_text = teacher.text.clip.encode_text
    models = {
        "teacher": (TwoSides(lambda images: teacher(images.to(dtype)).float(), encode_text), teacher.preprocessing),
        "student": (TwoSides(lambda images: student(images).pooled.float(), encode_text), student.config.preprocessing),
    }
    return {
        folder.name: {
            name: evaluate_set(
                model, teacher.text.tokenizer, preprocessing, folder, batch_size=batch_size, device=device
            )
            for name, (model, preprocessing) in models.items()
        }
        for folder in folders
    }


def as_table(results: dict[str, Any]) -> Table:
    """The results for a terminal: a row for each dataset and metric."""
    table = Table(title="zero-shot, clip-benchmark")
    for column in ("dataset", "metric", "teacher", "student"):
        table.add_column(column, justify="left" if column in ("dataset", "metric") else "right")
    for dataset, both in results.items():
        for metric, value in both["teacher"].items():
            table.add_row(dataset, metric, f"{value:.2%}", f"{both['student'][metric]:.2%}")
    return table


def build_parser() -> argparse.ArgumentParser:
    """The arguments of `python -m eval.encoders.clip_benchmark`."""
    parser = argparse.ArgumentParser(
        prog="python -m eval.encoders.clip_benchmark", description="Zero-shot, by clip-benchmark."
    )
    parser.add_argument("--teacher", required=True, help="open_clip:NAME/TAG or an open_clip directory")
    parser.add_argument("--encoder", type=Path, required=True, help="SparseFormer directory")
    parser.add_argument("--datasets", type=Path, nargs="+", required=True, help="folders in clip-benchmark's form")
    parser.add_argument("--batch-size", type=int, default=64)
    add_device_arguments(parser)
    parser.add_argument("--output", type=Path, help="JSON file to write")
    return parser


def _run(arguments: argparse.Namespace) -> None:
    check_output_files({"--output": arguments.output}, [arguments.teacher, arguments.encoder, *arguments.datasets])
    device = choose_device(arguments.device)
    results = compare(
        arguments.teacher,
        arguments.encoder,
        arguments.datasets,
        batch_size=arguments.batch_size,
        device=device,
        dtype=choose_dtype(arguments.dtype, device),
    )
    if arguments.output is not None:
        write_json(arguments.output, results)
    Console().print(as_table(results))


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    arguments = build_parser().parse_args(argv)
    return exit_with_sentence(lambda: _run(arguments))


if __name__ == "__main__":
    sys.exit(main())
