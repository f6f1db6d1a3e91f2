"""Bootstrapping: a pre-trained ViT becomes a SparseFormer, from unlabelled images alone.

    python -m train.bootstrap --teacher open_clip:ViT-L-14/openai --data_path IMAGES --output_dir OUT \\
        --tokens 63 --learning_rate 1e-3 --per_device_train_batch_size 64 --max_steps 20000
    python -m train.bootstrap --teacher timm:vit_small_patch14_dinov2@model.safetensors --image_size 224 ...

Output: OUT is an encoder directory (`SparseFormer.from_pretrained`), plus log.jsonl, inheritance.json (what became of
every weight) and, with --eval_data_path, alignment.json. Docs: docs/bootstrapping.md.
"""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

if __package__ in (None, ""):  # run as a file, as deepspeed does
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import HfArgumentParser

from sparse_vlm.bootstrap import BootstrapTask, bootstrap_from, open_teacher
from sparse_vlm.data.sources import ImageFolder, augmentation
from sparse_vlm.encoder import SparseFormer
from sparse_vlm.errors import exit_with_sentence
from sparse_vlm.files import new_directory, write_json
from train.stage import Part, StageArguments, StageTrainer, prepare, publish, run, what_trains

logger = logging.getLogger(__name__)


@dataclass
class BootstrapArguments:
    """Teacher, data and the shape of the student."""

    teacher: str = field(metadata={"help": "timm:NAME[@FILE], open_clip:NAME/TAG, or an open_clip directory"})
    data_path: str = field(metadata={"help": "a folder of images; labels are not used"})
    eval_data_path: str | None = field(default=None, metadata={"help": "a folder to measure the final alignment on"})
    tokens: int = field(default=64, metadata={"help": "latent tokens, without CLS"})
    image_size: int | None = field(default=None, metadata={"help": "input side in pixels instead of the teacher's"})
    drop_blocks: int | None = field(default=None, metadata={"help": "first blocks left out; default: a third"})
    tune_blocks: int | None = field(default=None, metadata={"help": "next blocks that train; default: a third"})
    tuned_lr_scale: float = field(default=0.1, metadata={"help": "their learning rate, times --learning_rate"})
    focus_width: int | None = field(default=None, metadata={"help": "default: half the teacher's width"})
    focus_repeats: int = field(default=4, metadata={"help": "repetitions of the focusing unit"})
    sampling_points: int = field(default=16, metadata={"help": "points a token samples in its RoI"})
    stem_channels: int = field(default=64, metadata={"help": "channels of the early convolution"})
    min_crop_area: float = field(default=0.35, metadata={"help": "smallest share of a picture that a crop keeps"})


def parts_of(student: SparseFormer, lr: float, tuned_lr: float) -> list[Part]:
    """New parts, inherited blocks that train, inherited weights that stay, as `requires_grad` says."""
    inherited = {id(parameter) for parameter in student.cortex.trunk.parameters()}
    new = tuple(p for p in student.parameters() if id(p) not in inherited)
    tuned = tuple(p for p in student.cortex.trunk.parameters() if p.requires_grad)
    frozen = tuple(p for p in student.cortex.trunk.parameters() if not p.requires_grad)
    return [Part("new", new, lr), Part("inherited, tuned", tuned, tuned_lr), Part("inherited, frozen", frozen, None)]


def bootstrap(arguments: BootstrapArguments, args: StageArguments) -> None:
    """Runs the stage."""
    prepare(args)
    teacher = open_teacher(arguments.teacher, image_size=arguments.image_size)
    student, report = bootstrap_from(
        teacher,
        arguments.tokens,
        drop=arguments.drop_blocks,
        tune=arguments.tune_blocks,
        focus_width=arguments.focus_width,
        points=arguments.sampling_points,
        repeats=arguments.focus_repeats,
        stem_channels=arguments.stem_channels,
    )
    task = BootstrapTask(student, teacher)
    parts = parts_of(student, args.learning_rate, args.learning_rate * arguments.tuned_lr_scale)
    logger.warning("%s\nWhat trains:\n%s", report, what_trains(task, parts))
    dataset = ImageFolder(arguments.data_path, augmentation(teacher.preprocessing, arguments.min_crop_area))
    held_out = ImageFolder(arguments.eval_data_path, student.transform) if arguments.eval_data_path else None
    run(StageTrainer(parts, model=task, args=args, train_dataset=dataset))
    if args.process_index == 0:
        saved = Path(args.output_dir) / ".finished"
        with new_directory(saved) as directory:
            student.save_pretrained(directory)
            write_json(directory / "inheritance.json", report.to_dict())
            if held_out is not None:
                write_json(directory / "alignment.json", measure_alignment(task, held_out, args))
        publish(saved, Path(args.output_dir), keep_checkpoints=args.keep_checkpoints)


@torch.no_grad()
def measure_alignment(task: BootstrapTask, images: ImageFolder, args: StageArguments) -> dict[str, float]:
    """Mean cosine of student and teacher over a folder of held-out images, with its size."""
    task.eval().to(args.device)
    loader = DataLoader(images, args.per_device_eval_batch_size)
    cosines = [task(batch["pixel_values"].to(args.device))["cosine"] for batch in tqdm(loader, "alignment")]
    return {"alignment_cosine": torch.cat(cosines).mean().item(), "images": len(images)}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = HfArgumentParser([BootstrapArguments, StageArguments])  # type: ignore[list-item]
    return exit_with_sentence(lambda: bootstrap(*parser.parse_args_into_dataclasses(argv)))


if __name__ == "__main__":
    sys.exit(main())
