"""Bootstrapping: a pre-trained ViT → a SparseFormer, without labels."""

from sparse_vlm.bootstrap.inherit import InheritanceReport, bootstrap_from
from sparse_vlm.bootstrap.matching import TokenMatch, match_tokens
from sparse_vlm.bootstrap.objective import BootstrapTask
from sparse_vlm.bootstrap.teachers import Teacher, open_teacher

__all__ = [
    "BootstrapTask",
    "InheritanceReport",
    "Teacher",
    "TokenMatch",
    "bootstrap_from",
    "match_tokens",
    "open_teacher",
]
