"""The paths of the quickstart's results."""

from dataclasses import dataclass
from pathlib import Path

from sparse_vlm.data.easy_vqa import split_folder


@dataclass(frozen=True)
class Paths:
    """The paths below the root of a run."""

    root: Path

    @property
    def data(self) -> Path:
        """The output of `train.quickstart.data`."""
        return self.root / "data"

    @property
    def teacher(self) -> Path:
        """The tiny CLIP, in open_clip's format."""
        return self.root / "teacher"

    @property
    def encoder(self) -> Path:
        """The bootstrapped SparseFormer."""
        return self.root / "encoder"

    @property
    def model(self) -> Path:
        """The final model directory."""
        return self.root / "model"

    @property
    def scores(self) -> Path:
        """The scores of the final model."""
        return self.root / "scores.json"

    @property
    def dense_scores(self) -> Path:
        """The scores of the same LLM on the dense teacher's tokens, with --compare."""
        return self.root / "dense" / "scores.json"

    @property
    def first_token(self) -> Path:
        """Seconds to the first token of both models, with --compare."""
        return self.root / "first_token.json"

    @property
    def step_time(self) -> Path:
        """Seconds of a training step of both models, with --compare."""
        return self.root / "step_time.json"

    @property
    def zero_shot(self) -> Path:
        """Zero-shot accuracies of teacher and student."""
        return self.root / "zero_shot.json"

    @property
    def train_images(self) -> Path:
        """The images of all training."""
        return self.data / "train"

    @property
    def validation_images(self) -> Path:
        """Held-out images of the training split."""
        return self.data / "validation"

    @property
    def validation_questions(self) -> Path:
        """The questions about the validation images."""
        return self.data / "validation.json"

    @property
    def test_questions(self) -> Path:
        """The questions about the test images."""
        return self.data / "questions.json"

    @property
    def test_images(self) -> Path:
        """easy-VQA's test images, used only for the report."""
        return split_folder("test") / "images"
