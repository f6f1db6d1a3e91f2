"""Fingerprint of a model's weights."""

import hashlib

import torch
from torch import nn


def fingerprint(module: nn.Module) -> str:
    """Hash all weights and buffers, with their names, dtypes and shapes, to 16 hexadecimal digits.

    The device and the file that the weights come from do not matter.
    """
    digest = hashlib.sha256()
    for name, weight in sorted(module.state_dict().items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
