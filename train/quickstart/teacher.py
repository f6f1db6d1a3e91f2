"""Train the quickstart's teacher, a tiny CLIP, on the captions of easy-VQA's training images.

    python -m train.quickstart.teacher --output_dir runs/quickstart/teacher --max_steps 1000 --learning_rate 1e-3 \\
        --data_path runs/quickstart/data/captions.json --image_folder runs/quickstart/data/train \\
        --per_device_train_batch_size 24 --train_sampling_strategy sequential

No PyPI package has a pre-trained CLIP, so the quickstart trains one. With real data, use a real teacher instead:
`train.bootstrap --teacher open_clip:ViT-L-14/openai`. Output: a directory in open_clip's format.
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
from sparse_vlm.data.easy_vqa import CLASSES
from sparse_vlm.data.images.augmentation import augmentation
from sparse_vlm.encoder import Preprocessing
from sparse_vlm.encoder.preprocessing import CLIP_MEAN, CLIP_STD
from sparse_vlm.errors import UserError
from sparse_vlm.files import write_json
from sparse_vlm.image_files import open_image
from train.stages.command_line import run_command
from train.stages.stage import ParameterGroup, StageArguments, finished_model, prepare, run, set_trainable
from train.stages.trainer import StageTrainer

logger = logging.getLogger(__name__)
BATCH = len(CLASSES)
PREPROCESSING = Preprocessing(resize=64, crop=64, mean=CLIP_MEAN, std=CLIP_STD)


@dataclass
class TeacherArguments:
    """The data and the size of the teacher."""

    data_path: str = field(metadata={"help": "captions.json of train.quickstart.data"})
    image_folder: str = field(metadata={"help": "folder of its images"})
    width: int = field(default=128, metadata={"help": "channels of both towers"})
    image_layers: int = field(default=6, metadata={"help": "blocks of the ViT, on 64 patches of 8 pixels"})
    text_layers: int = field(default=2, metadata={"help": "blocks of the text tower"})


class CaptionedImages(Dataset):
    """Images with their captions, ordered for batches of 24: one image of every class.

    No caption occurs twice in a batch, so all other images are true negatives, and every image has negatives of its
    own colour and of its own shape. Items: {"pixel_values", "text": int64[context]}.

    Args:
        captions: LLaVA JSON of `train.quickstart.data`, with every caption of `CLASSES`.
        folder: folder of the images.
        texts: the token ids of each caption.
        batches: number of batches.
        seed: seed of the order.
    """

    def __init__(
        self, captions: str | Path, folder: str | Path, texts: dict[str, Tensor], batches: int, seed: int
    ) -> None:
        members: dict[str, list[str]] = {caption: [] for caption in texts}
        for record in json.loads(Path(captions).read_text(encoding="utf-8")):
            members[record["conversations"][1]["value"]].append(record["image"])
        self.texts, self.folder = texts, Path(folder)
        self.transform = augmentation(PREPROCESSING, min_area=0.5)
        order = random.Random(seed)
        self.items: list[tuple[str, str]] = []
        for _ in range(batches):
            self.items += [(order.choice(members[caption]), caption) for caption in texts]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        image, caption = self.items[index]
        pixels = self.transform(open_image(self.folder / image))
        return {"pixel_values": pixels, "text": self.texts[caption]}


class ContrastiveTask(nn.Module):
    """open_clip's CLIP with its contrastive loss."""

    def __init__(self, clip: CLIP) -> None:
        super().__init__()
        self.clip = clip
        self.loss = open_clip.ClipLoss()

    def forward(self, pixel_values: Tensor, text: Tensor) -> dict[str, Tensor]:
        """float[B, 3, H, W], int64[B, context] -> {"loss"}"""
        images, texts, scale = self.clip(pixel_values, text)
        return {"loss": self.loss(images, texts, scale)}


class Vocabulary:
    """The few words of all captions, numbered without gaps, so that a step does not update 49,408 embeddings.

    Args:
        context: number of tokens per caption.
    """

    def __init__(self, context: int) -> None:
        captions = [shown.caption for shown in CLASSES]
        tokens = open_clip.SimpleTokenizer(context_length=context)(captions)
        self.words, numbers = tokens.unique(return_inverse=True)  # ascending: the end of a text stays the largest
        self.texts = dict(zip(captions, numbers, strict=True))

    def expand(self, embedding: Tensor, size: int) -> Tensor:
        """Return the embedding of open_clip's whole vocabulary from that of `words`; the others are zero."""
        whole = embedding.new_zeros(size, embedding.shape[1])
        whole[self.words] = embedding
        return whole


def clip_config(arguments: TeacherArguments) -> dict[str, Any]:
    """Return the teacher's open_clip model configuration."""
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
    """Train the teacher and write it as an open_clip directory.

    Raises:
        UserError: the batches are not those in which no caption occurs twice.
    """
    if args.train_batch_size != BATCH or args.train_sampling_strategy != "sequential":
        raise UserError(
            f"The captions are ordered for batches of {BATCH}: give --per_device_train_batch_size {BATCH} "
            "--train_sampling_strategy sequential."
        )
    prepare(args)
    config = clip_config(arguments)
    vocabulary = Vocabulary(config["text_cfg"]["context_length"])
    clip = CLIP(**config | {"text_cfg": config["text_cfg"] | {"vocab_size": len(vocabulary.words)}})
    # With open_clip's 0.02, all captions start out nearly identical, and accuracy on shapes stays at chance.
    nn.init.normal_(clip.token_embedding.weight, std=1.0)
    task = ContrastiveTask(clip)
    groups = [ParameterGroup("CLIP", tuple(task.parameters()), args.learning_rate)]
    logger.info("Parameter groups:\n%s", set_trainable(task, groups))
    folder = arguments.image_folder
    dataset = CaptionedImages(arguments.data_path, folder, vocabulary.texts, args.max_steps, args.seed)
    run(StageTrainer(groups, model=task, args=args, train_dataset=dataset))
    with finished_model(args, lambda folder: open_teacher(str(folder))) as directory:
        weights = clip.state_dict()
        embedding = vocabulary.expand(weights["token_embedding.weight"], config["text_cfg"]["vocab_size"])
        weights |= {"token_embedding.weight": embedding}
        save_file(weights, directory / "open_clip_model.safetensors")
        preprocess = {"mean": CLIP_MEAN, "std": CLIP_STD, "interpolation": "bicubic", "resize_mode": "shortest"}
        write_json(directory / "open_clip_config.json", {"model_cfg": config, "preprocess_cfg": preprocess})


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status."""
    classes = (TeacherArguments, StageArguments)
    return run_command("train.quickstart.teacher", __doc__, classes, train_teacher, argv)


if __name__ == "__main__":
    sys.exit(main())
