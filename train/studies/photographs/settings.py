"""The settings of a run, and their checks before the first step."""

import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sparse_vlm.bootstrap.teachers import open_teacher
from sparse_vlm.data.tar_shards import local_shards
from sparse_vlm.encoder import SparseFormer
from sparse_vlm.errors import UserError
from sparse_vlm.measure.timing import require_positive
from train.studies.photographs.classes import draw, read_photographs


@dataclass(frozen=True)
class Settings:
    """The settings of a run. Those of training are the same for both sides.

    Attributes:
        encoder: directory of the student.
        teacher, teacher_layer: the dense side's tower, see `open_teacher`.
        image_size: side of the input of both towers in pixels.
        photographs: folder of the shards.
        training_shards, validation_shards, test_shards: in webdataset's notation.
        tokens: numbers of visual tokens that the student's model trains with and is measured with.
        llm: the language model.
        feature_layer: hidden state of both towers that becomes the visual tokens.
        learning_rates: learning rates of the instruction tuning to choose among.
        training_images, validation_images, test_images: photographs of each split.
        texts: conversations without an image.
        word_start: captions from which the projector starts.
        align_steps: steps of the alignment.
        conversations: conversations about photographs, eight per step.
        save_steps: steps between two checkpoints.
        seed: seed of all draws.
        cpu: compute on the CPU, even if there is an accelerator.
    """

    encoder: str
    teacher: str
    teacher_layer: int | None
    image_size: int
    photographs: str
    training_shards: str
    validation_shards: str
    test_shards: str
    tokens: tuple[int, ...]
    llm: str
    feature_layer: int
    learning_rates: tuple[float, ...]
    training_images: int
    validation_images: int
    test_images: int
    texts: int
    word_start: int
    align_steps: int
    conversations: int
    save_steps: int
    seed: int
    cpu: bool

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON values."""
        return asdict(self) | {"tokens": list(self.tokens), "learning_rates": list(self.learning_rates)}

    def check(self) -> None:
        """Check everything that a later step would refuse.

        Raises:
            UserError: the teacher cannot be opened, the student sees images of another size or was not trained with
                one of `tokens`, shards are missing or shared by two splits, or a split has too few photographs.
        """
        counted = ("texts", "word_start", "align_steps", "conversations", "save_steps")
        require_positive(**{name: getattr(self, name) for name in counted})
        self._check_rates()
        check_tokens(SparseFormer.from_pretrained(self.encoder), self.tokens, self.image_size)
        open_teacher(self.teacher, image_size=self.image_size, layer=self.teacher_layer)
        self._check_splits()

    def _check_rates(self) -> None:
        for rate in self.learning_rates:
            if not 0 < rate < 1:
                raise UserError(f"--learning_rates must lie between 0 and 1, got {rate:g}.")
        if len(set(self.learning_rates)) < len(self.learning_rates):
            raise UserError(f"--learning_rates names one twice: {', '.join(f'{r:g}' for r in self.learning_rates)}.")

    def _check_splits(self) -> None:
        owner: dict[Path, str] = {}
        for split in ("training", "validation", "test"):
            shards, option = getattr(self, f"{split}_shards"), f"--{split}_images"
            for shard in local_shards(shards, "photographs are read by index", Path(self.photographs)):
                other = owner.setdefault(shard.resolve(), split)
                if other != split:
                    raise UserError(
                        f"The shard {shard} is both a {other} and a {split} shard: each split needs its own."
                    )
            draw(read_photographs(self.photographs, shards), getattr(self, f"{split}_images"), random.Random(), option)


def check_tokens(encoder: SparseFormer, tokens: tuple[int, ...], image_size: int) -> None:
    """Check that an encoder was trained with these numbers of latent tokens, on images of this size.

    Raises:
        UserError: it was not.
    """
    config = encoder.config
    if config.preprocessing.crop != image_size:
        raise UserError(
            f"The encoder sees images of {config.preprocessing.crop} pixels, so --image_size {image_size} would "
            f"compare unlike towers. Leave it out, or bootstrap an encoder with --image_size {image_size}."
        )
    untrained = [count for count in tokens if count not in config.token_counts]
    if untrained:
        raise UserError(
            f"The encoder was not trained with {untrained[0]} tokens but with {config.token_counts}: choose --tokens "
            "among these."
        )
