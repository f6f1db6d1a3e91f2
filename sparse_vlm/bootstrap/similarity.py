"""Similarity of a student's and a teacher's representations of the same images."""

import torch.nn.functional as F
from torch import Tensor


def mean_cosine(student: Tensor, teacher: Tensor) -> float:
    """Mean cosine of representations of the same images, float[N, D] each."""
    return F.cosine_similarity(student, teacher, dim=-1).mean().item()


def centered_cosine(student: Tensor, teacher: Tensor) -> float:
    """Mean cosine after subtracting the mean representation of each model; 0 for a single image."""
    return mean_cosine(student - student.mean(0), teacher - teacher.mean(0))
