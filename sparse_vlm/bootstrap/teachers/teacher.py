"""The teacher: a frozen timm VisionTransformer with everything that belongs to its weights."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from sparse_vlm.encoder import CortexConfig, Preprocessing
from sparse_vlm.encoder.cortex import fuse_quick_gelu
from sparse_vlm.errors import UserError


class TextEncoder(nn.Module):
    """Text encoder of an open_clip model, for zero-shot classification.

    Args:
        clip: open_clip model; its image encoder is not used.
        config: open_clip's model_cfg, as JSON values.
        make_tokenizer: opens the tokenizer on first use, because that of some models is on the hub.
    """

    def __init__(self, clip: nn.Module, config: dict[str, Any], make_tokenizer: Callable[[], Any]) -> None:
        super().__init__()
        self.clip: Any = clip  # nn.Module does not declare encode_text
        self.config = config
        self._make_tokenizer = make_tokenizer

    @cached_property
    def tokenizer(self) -> Any:
        """Captions -> token ids int64[captions, context]."""
        return self._make_tokenizer()

    @torch.no_grad()
    def forward(self, captions: list[str]) -> Tensor:
        """Captions -> unit embeddings float[len(captions), D]."""
        device = next(self.parameters()).device
        return F.normalize(self.clip.encode_text(self.tokenizer(captions).to(device)), dim=-1)


class Teacher(nn.Module):
    """Frozen ViT with its configuration, preprocessing, licence and text encoder.

    Attributes:
        name: specification that it was opened with, without local folders.
        trunk: the ViT, including pooling and head; in evaluation mode, without gradients.
        cortex: configuration of the trunk; `depth` is the teacher's number of blocks N.
        preprocessing: mean, std, input size, interpolation and resize mode of the weights.
        licence: licence of the weights, "" if unknown.
        text: text encoder; only open_clip's models have one.
    """

    def __init__(
        self,
        name: str,
        trunk: VisionTransformer,
        cortex: CortexConfig,
        preprocessing: Preprocessing,
        licence: str = "",
        text: TextEncoder | None = None,
    ) -> None:
        super().__init__()
        self.name, self.cortex, self.preprocessing, self.licence = name, cortex, preprocessing, licence
        fuse_quick_gelu(trunk)  # as in a cortex: the same blocks then give the same numbers
        self.trunk: Any = trunk  # timm's attributes have no types
        self.text = text
        self.eval().requires_grad_(False)

    def cut_behind(self, layer: int) -> None:
        """Cut off the blocks behind a block, in place: its tokens become the representation.

        The final norm and the pooling stay and read the tokens of that block. The head and the text encoder go: they
        were trained on the tokens of the last block.

        Args:
            layer: index of a block from 0; negative ones count from the end. The last one changes nothing.

        Raises:
            UserError: the teacher does not have this block.
        """
        blocks = self.cortex.depth
        if not -blocks <= layer < blocks:
            raise UserError(f"{self.name} has no block {layer}: its blocks are 0 to {blocks - 1}, or -1 to {-blocks}.")
        depth = layer % blocks + 1
        if depth == blocks:
            return
        self.trunk.blocks = self.trunk.blocks[:depth]
        if self.cortex.head_dim:
            self.trunk.reset_classifier(0)
        self.cortex = replace(self.cortex, depth=depth, head_dim=0, head_bias=False)
        self.text = None
        self.name = f"{self.name}, block {depth - 1}"

    @property
    def grid(self) -> tuple[int, int]:
        """Number of rows and columns of patch tokens at the teacher's input size."""
        rows, columns = self.trunk.patch_embed.grid_size
        return rows, columns

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Images float[B, 3, H, W] at the teacher's input size -> pooled and projected representation float[B, D]."""
        return self.trunk(images)

    @torch.no_grad()
    def tokens(self, images: Tensor) -> Tensor:
        """Images float[B, 3, H, W] at the teacher's input size -> output of the last block float[B, prefix + n, C].

        Before the final norm. CLS and register tokens, if any, precede the n = rows · columns patches of `grid`, which
        are in row-major order.
        """
        with self.recorded([-1]) as states:
            self.trunk(images)
        return states[-1]

    @contextmanager
    def recorded(self, layers: Iterable[int]) -> Iterator[dict[int, Tensor]]:
        """Record hidden states float[B, prefix + n, C] by layer; each forward pass replaces them.

        Args:
            layers: −1 for the output of the last block, before the final norm; −2 for its input, and so on down to
                −depth − 1 for the input of the first block.
        """
        readers = [*self.trunk.blocks, self.trunk.norm]  # each reads the hidden state of its layer
        states: dict[int, Tensor] = {}

        def record(layer: int) -> Callable[[nn.Module, Any], None]:
            return lambda _, inputs: states.update({layer: inputs[0]})

        hooks = [readers[layer].register_forward_pre_hook(record(layer)) for layer in layers]
        try:
            yield states
        finally:
            for hook in hooks:
                hook.remove()

    def train(self, mode: bool = True) -> "Teacher":
        """Do nothing: a teacher stays in evaluation mode, without dropout and drop path."""
        return super().train(False)


def square_side(size: int | tuple[int, int], source: str) -> int:
    """Return the side of a square input size in pixels; raise a UserError for other shapes."""
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        raise UserError(f"{source} expects images of {height}×{width} pixels: a teacher must have a square input.")
    return height


def require_whole_patches(image_size: int | None, patch: tuple[int, int], source: str) -> None:
    """Raise a UserError that suggests the nearest sizes unless whole patches cover the image.

    Args:
        image_size: side in pixels; None for the model's own.
        patch: height and width of a patch in pixels.
        source: name of the model, for the error message.
    """
    side = math.lcm(*patch)
    if image_size is None or image_size % side == 0:
        return
    if image_size < side:
        raise UserError(
            f"An image of {image_size} pixels is smaller than a patch of {source}: choose a larger size, such as "
            f"{side}."
        )
    below = image_size // side * side
    raise UserError(
        f"Patches of {side} pixels do not cover images of {image_size} pixels: {source} would ignore the last "
        f"{image_size - below} rows and columns. Choose the image size {below} or {below + side}."
    )
