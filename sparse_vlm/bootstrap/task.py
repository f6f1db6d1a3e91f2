"""The bootstrapping task: student and frozen teacher in one module, images in, losses out."""

import torch.nn.functional as F
from torch import Tensor, nn

from sparse_vlm.bootstrap.teachers import Teacher
from sparse_vlm.encoder import SparseFormer


class BootstrapTask(nn.Module):
    """Aligns the student's final representation with the teacher's on unlabelled images: 1 − cosine.

    Source: arXiv 2312.01987 for what is aligned; the exact loss is ours.

    Args:
        student: what is trained and saved.
        teacher: runs without gradients; not a submodule, so that it is neither saved, nor wrapped by DeepSpeed.
    """

    def __init__(self, student: SparseFormer, teacher: Teacher) -> None:
        super().__init__()
        self.student = student
        self._unregistered = (teacher,)

    @property
    def teacher(self) -> Teacher:
        """The frozen teacher."""
        return self._unregistered[0]

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """float[B, 3, H, W] -> {"loss": mean of 1 − cosine, "cosine": float[B]}."""
        target = self.teacher.to(pixel_values.device)(pixel_values)
        cosine = F.cosine_similarity(self.student(pixel_values).pooled.float(), target.float(), dim=-1)
        return {"loss": (1 - cosine).mean(), "cosine": cosine.detach()}
