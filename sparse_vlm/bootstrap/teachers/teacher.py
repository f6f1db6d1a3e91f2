"""What a teacher is: a frozen timm VisionTransformer with everything that belongs to its weights."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from sparse_vlm.encoder import CortexConfig, Preprocessing
from sparse_vlm.errors import UserError


class TextSide(nn.Module):
    """The text encoder of an open_clip model, for zero-shot classification.

    Args:
        clip: the model; its image side may be anything.
        config: what open_clip calls its model_cfg, as JSON values.
        make_tokenizer: opens its tokenizer, which for some models lies on the hub: at the first use, not before.
    """

    def __init__(self, clip: nn.Module, config: dict[str, Any], make_tokenizer: Callable[[], Any]) -> None:
        super().__init__()
        self.clip: Any = clip  # its encode_text is what nn.Module does not declare
        self.config = config
        self._make_tokenizer = make_tokenizer

    @cached_property
    def tokenizer(self) -> Any:
        """Captions -> token ids int64[captions, context].

        Raises:
            UserError: it cannot be opened, e.g. because the hub is out of reach.
        """
        return self._make_tokenizer()

    @torch.no_grad()
    def forward(self, captions: list[str]) -> Tensor:
        """Captions -> unit embeddings float[len(captions), D]."""
        device = next(self.parameters()).device
        return F.normalize(self.clip.encode_text(self.tokenizer(captions).to(device)), dim=-1)


class Teacher(nn.Module):
    """A frozen ViT with everything that belongs to it.

    Attributes:
        name: what it was opened as, without the folders of this machine.
        trunk: its pooling and head included; in eval mode, without gradients.
        cortex: the numbers of the trunk; `depth` is the teacher's N blocks.
        preprocessing: mean, std, input size, interpolation and resize mode of the weights.
        licence: licence of the weights, "" if unknown.
        text: the text encoder, of open_clip's models only.
    """

    def __init__(
        self,
        name: str,
        trunk: VisionTransformer,
        cortex: CortexConfig,
        preprocessing: Preprocessing,
        licence: str = "",
        text: TextSide | None = None,
    ) -> None:
        super().__init__()
        self.name, self.cortex, self.preprocessing, self.licence = name, cortex, preprocessing, licence
        self.trunk: Any = trunk  # timm's attributes have no types
        self.text = text
        self.eval().requires_grad_(False)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the patch tokens at the teacher's input size."""
        rows, columns = self.trunk.patch_embed.grid_size
        return rows, columns

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """float[B, 3, H, W] at the teacher's input size -> final representation float[B, D] (pooled, projected)."""
        return self.trunk(images)

    @torch.no_grad()
    def tokens(self, images: Tensor) -> Tensor:
        """float[B, 3, H, W] at the teacher's input size -> float[B, prefix + n, C] leaving the last block.

        Before the final norm: CLS and register tokens, where there are such, then the n = rows · columns patches of
        `grid`, row by row.
        """
        patches = self.trunk.forward_intermediates(
            images, indices=1, return_prefix_tokens=True, output_fmt="NLC", intermediates_only=True
        )[0]
        if isinstance(patches, tuple):
            patches, prefix = patches
            return torch.cat([prefix, patches], dim=1)
        return patches

    @contextmanager
    def tokens_entering(self, block: int) -> Iterator[list[Tensor]]:
        """While open, each pass adds the tokens float[B, prefix + n, C] that enter a block (from 0) to the list."""
        entering: list[Tensor] = []
        hook = self.trunk.blocks[block].register_forward_pre_hook(lambda _, inputs: entering.append(inputs[0]))
        try:
            yield entering
        finally:
            hook.remove()

    def train(self, mode: bool = True) -> "Teacher":
        """A teacher stays in eval mode: no dropout, no drop path."""
        return super().train(False)


def square_side(size: int | tuple[int, int], source: str) -> int:
    """The side of a square input size in pixels.

    Raises:
        UserError: it is no square.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        raise UserError(f"{source} takes images of {height}×{width} pixels: only a square input can be a teacher's.")
    return height


def require_whole_patches(image_size: int | None, patch: tuple[int, int], source: str) -> None:
    """Whether patches cover images of a size to their edges.

    Args:
        image_size: side in pixels; None: the model's own.
        patch: height and width of a patch in pixels.
        source: for the error.

    Raises:
        UserError: they do not; the nearest sizes are named.
    """
    side = math.lcm(*patch)
    if image_size is None or image_size % side == 0:
        return
    if image_size < side:
        raise UserError(f"{source} makes no patch of {image_size} pixels: choose a larger image size, such as {side}.")
    below = image_size // side * side
    raise UserError(
        f"Patches of {side} pixels do not cover images of {image_size}: {source} would not see the last "
        f"{image_size - below} rows and columns. Choose the image size {below} or {below + side}."
    )
