"""The quickstart's teacher: a tiny CLIP, trained on the captions of easy-VQA's training images.

    python -m train.quickstart.teacher --output_dir runs/quickstart/teacher --max_steps 2200 --learning_rate 1e-3 \\
        --data_path runs/quickstart/data/captions.json --image_folder runs/quickstart/data/train \\
        --per_device_train_batch_size 12 --train_sampling_strategy sequential

No pre-trained CLIP can be packaged, so the quickstart makes one. With real data, take a real teacher instead:
`train/bootstrap.py --teacher open_clip:ViT-L-14/openai`. Output: a directory in open_clip's own format.
"""

import json
import logging
import random
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import open_clip
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import Dataset

from sparse_vlm.bootstrap.teachers import open_teacher
from sparse_vlm.data.easy_vqa import (
    CLASSES,
    COLOURS,
    SHAPES,
    Attributes,
)
from sparse_vlm.data.images.augmentation import augmentation
from sparse_vlm.encoder import Preprocessing
from sparse_vlm.encoder.preprocessing import CLIP_MEAN, CLIP_STD
from sparse_vlm.errors import UserError, exit_with_sentence
from sparse_vlm.files import new_directory, write_json
from sparse_vlm.image_files import open_image
from train.stages.command_line import parse_arguments
from train.stages.stage import Part, StageArguments, prepare, publish, run, what_trains
from train.stages.trainer import StageTrainer

logger = logging.getLogger(__name__)
BATCH = 12
PREPROCESSING = Preprocessing(resize=64, crop=64, mean=CLIP_MEAN, std=CLIP_STD)


@dataclass
class TeacherArguments:
    """The data, and the size of the teacher."""

    data_path: str = field(metadata={"help": "captions.json of train.quickstart.data"})
    image_folder: str = field(metadata={"help": "the folder of its images"})
    width: int = field(default=128, metadata={"help": "channels of both towers"})
    image_layers: int = field(default=6, metadata={"help": "blocks of the ViT, on 64 patches of 8 pixels"})
    text_layers: int = field(default=2, metadata={"help": "blocks of the text tower"})


class CaptionedImages(Dataset):
    """Images with their captions, ordered for batches of 12: all three shapes in four colours.

    No caption stands twice in a batch, so that every other image is a true negative, and half of the images have a
    negative that differs in the shape alone. Items: {"pixel_values", "text": int64[context]}.

    Args:
        captions: LLaVA JSON of `train.quickstart.data`, with every caption of `CLASSES`.
        folder: of the images.
        context: tokens of a caption.
        batches: number of batches.
        seed: of the order.
    """

    def __init__(self, captions: str | Path, folder: str | Path, context: int, batches: int, seed: int) -> None:
        members: dict[str, list[str]] = {shown.caption: [] for shown in CLASSES}
        for record in json.loads(Path(captions).read_text(encoding="utf-8")):
            members[record["conversations"][1]["value"]].append(record["image"])
        tokenizer = open_clip.SimpleTokenizer(context_length=context)
        self.texts = {caption: tokenizer(caption)[0] for caption in members}
        self.folder = Path(folder)
        self.transform = augmentation(PREPROCESSING, min_area=0.5)
        order = random.Random(seed)
        self.items: list[tuple[str, str]] = []
        while len(self.items) < BATCH * batches:
            colours = order.sample(COLOURS, len(COLOURS))
            for caption in (Attributes(shape, colour).caption for colour in colours for shape in SHAPES):
                self.items.append((order.choice(members[caption]), caption))

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        image, caption = self.items[index]
        pixels = self.transform(open_image(self.folder / image))
        return {"pixel_values": pixels, "text": self.texts[caption]}


class ContrastiveTask(nn.Module):
    """open_clip's CLIP and its contrastive loss in one module."""

    def __init__(self, clip: CLIP) -> None:
        super().__init__()
        self.clip = clip
        self.loss = open_clip.ClipLoss()

    def forward(self, pixel_values: Tensor, text: Tensor) -> dict[str, Tensor]:
        """float[B, 3, H, W], int64[B, context] -> {"loss"}"""
        images, texts, scale = self.clip(pixel_values, text)
        return {"loss": self.loss(images, texts, scale)}


def clip_config(arguments: TeacherArguments) -> dict[str, Any]:
    """The open_clip model configuration of the teacher."""
    vision = CLIPVisionCfg(arguments.image_layers, arguments.width, patch_size=8, image_size=PREPROCESSING.crop)
    text = CLIPTextCfg(
        context_length=8, width=arguments.width, heads=arguments.width // 64, layers=arguments.text_layers
    )
    return {
        "embed_dim": arguments.width,
        "quick_gelu": True,
        "vision_cfg": {name: value for name, value in asdict(vision).items() if value is not None},
        "text_cfg": {name: value for name, value in asdict(text).items() if value is not None},
    }


def train_teacher(arguments: TeacherArguments, args: StageArguments) -> None:
    """Trains the teacher and writes it as an open_clip directory.

    Raises:
        UserError: other batches than those in which no caption stands twice.
    """
    if args.train_batch_size != BATCH or args.train_sampling_strategy != "sequential":
        raise UserError(
            f"The captions are ordered for batches of {BATCH}: give --per_device_train_batch_size {BATCH} "
            "--train_sampling_strategy sequential."
        )
    prepare(args)
    config = clip_config(arguments)
    clip = CLIP(**config)
    # With open_clip's 0.02 all captions start out nearly identical, and the shapes stay at chance.
    nn.init.normal_(clip.token_embedding.weight, std=1.0)
    task = ContrastiveTask(clip)
    parts = [Part("CLIP", tuple(task.parameters()), args.learning_rate)]
    logger.warning("What trains:\n%s", what_trains(task, parts))
    context = config["text_cfg"]["context_length"]
    dataset = CaptionedImages(arguments.data_path, arguments.image_folder, context, args.max_steps, args.seed)
    run(StageTrainer(parts, model=task, args=args, train_dataset=dataset))
    saved = Path(args.output_dir) / ".finished"
    with new_directory(saved) as directory:
        save_file(clip.state_dict(), directory / "open_clip_model.safetensors")
        preprocess = {"mean": CLIP_MEAN, "std": CLIP_STD, "interpolation": "bicubic", "resize_mode": "shortest"}
        write_json(directory / "open_clip_config.json", {"model_cfg": config, "preprocess_cfg": preprocess})
    publish(
        saved, Path(args.output_dir), lambda folder: open_teacher(str(folder)), keep_checkpoints=args.keep_checkpoints
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    words = sys.argv[1:] if argv is None else argv
    return exit_with_sentence(lambda: train_teacher(*parse_arguments((TeacherArguments, StageArguments), words)))


if __name__ == "__main__":
    sys.exit(main())
