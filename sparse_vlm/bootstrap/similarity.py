"""How alike a student's and a teacher's representations of the same images are."""

import torch.nn.functional as F
from torch import Tensor


def mean_cosine(student: Tensor, teacher: Tensor) -> float:
    """Of two sets of representations of the same images, float[N, D] each."""
    return F.cosine_similarity(student, teacher, dim=-1).mean().item()


def centered_cosine(student: Tensor, teacher: Tensor) -> float:
    """The same of their deviations from their own means; of one image alone, which deviates from nothing, 0."""
    return mean_cosine(student - student.mean(0), teacher - teacher.mean(0))
