"""SparseFormer: stem → focusing transformer → cortex."""

import logging
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.utils._pytree import _register_namedtuple

from sparse_vlm.encoder import checkpoints
from sparse_vlm.encoder.config import SparseFormerConfig
from sparse_vlm.encoder.cortex import Cortex
from sparse_vlm.encoder.focusing import FocusingTransformer
from sparse_vlm.encoder.init import init_weights
from sparse_vlm.encoder.preprocessing import Transform
from sparse_vlm.encoder.rois import check_rois, lay_out_clip_rois, lay_out_rois
from sparse_vlm.encoder.stem import Stem
from sparse_vlm.encoder.variants import variant_config
from sparse_vlm.errors import UserError
from sparse_vlm.hub.transfer import upload

logger = logging.getLogger(__name__)


class EncoderOutput(NamedTuple):
    """Output of an encoder for B images or clips, with n latent tokens of C channels.

    Attributes:
        tokens: float[B, prefix + n, C], output of the last block before the final norm: CLS and register tokens, if the
            teacher has any, then the latent tokens.
        pooled: float[B, D], normalised, pooled and projected: the teacher's embedding or class logits.
        rois: float32[steps, B, n, 4], (x1, y1, x2, y2) in image coordinates after each RoI adjustment; for clips
            float32[steps, B, n, 6], (x1, y1, t1, x2, y2, t2).
        hidden_states: input of the first block and output of each block, float[B, prefix + n, C] each; [-1] is
            `tokens`.
    """

    tokens: Tensor
    pooled: Tensor
    rois: Tensor
    hidden_states: tuple[Tensor, ...]


# torch.export.save needs a name for the type in its files.
_register_namedtuple(EncoderOutput, serialized_type_name=f"{EncoderOutput.__module__}.EncoderOutput")


class Encoder(nn.Module):
    """What encoders of images and of clips have in common: everything but their inputs.

    Attributes:
        axes: 2 for images, 3 for clips.
        model_type: name of this kind of encoder in config.json.

    Args:
        config: configuration. Weights are random.
    """

    axes: ClassVar[int]
    model_type: ClassVar[str]

    def __init__(self, config: SparseFormerConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = Stem(config.stem.channels)
        self.focus = FocusingTransformer(config, self.axes)
        self.cortex = Cortex(config.cortex)
        init_weights(self.stem, self.focus, self.cortex)

    def encode_features(self, features: Tensor, rois: Tensor | None) -> EncoderOutput:
        """Encode the output of `features`; `rois`: float32[B, n, 2·axes] from `starting_rois`, or None."""
        latent, adjusted = self.focus(features, rois)
        states = self.cortex(latent)
        return EncoderOutput(states[-1], self.cortex.pool(states[-1]), adjusted, states)

    def states_from_features(self, features: Tensor, layers: Sequence[int], rois: Tensor | None) -> tuple[Tensor, ...]:
        """Compute some of the hidden states from the output of `features`, without the blocks after the last of them.

        Args:
            features: output of `features`.
            layers: indices of hidden states; negative ones count from the end.
            rois: float32[B, n, 2·axes] from `starting_rois`, or None.
        """
        depth = self.config.cortex.depth
        for layer in layers:
            if not -depth - 1 <= layer <= depth:
                raise UserError(
                    f"Hidden state {layer} does not exist: this encoder has 0 to {depth}, or -1 to {-depth - 1}."
                )
        places = [layer % (depth + 1) for layer in layers]
        latent, _ = self.focus(features, rois)
        states = self.cortex(latent, max(places, default=0))
        return tuple(states[place] for place in places)

    @property
    def num_prefix_tokens(self) -> int:
        """Number of tokens before the latent tokens in `tokens` and `hidden_states`: CLS, if any, and registers."""
        return self.cortex.num_prefix_tokens

    @property
    def num_register_tokens(self) -> int:
        """Number of register tokens (arXiv 2309.16588), which are the last of the prefix tokens."""
        return self.cortex.num_register_tokens

    @property
    def num_parameters(self) -> int:
        """Number of all parameters, trainable or not."""
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def transform(self) -> Transform:
        """Preprocessing that the weights expect: image -> float32[3, crop, crop]."""
        return Transform(self.config.preprocessing)

    def save_pretrained(self, directory: str | Path) -> None:
        """Write config.json, model.safetensors and a model card to a directory, atomically.

        An existing README.md that was edited or comes from elsewhere is kept.
        """
        checkpoints.save_directory(directory, self.config, self.state_dict(), self.model_type)

    def push_to_hub(self, repo_id: str, **options: Any) -> Any:
        """Upload the encoder with its card to OWNER/NAME on the Hugging Face hub, with the `options` of `upload`."""
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return upload(folder, repo_id, **{"commit_message": "Upload encoder", **options})

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> Self:
        """Load a directory written by `save_pretrained`, strictly, in float32 and evaluation mode.

        Raises:
            UserError: the directory is missing or incomplete, holds another kind of encoder, or its weights do not
                match its configuration.
        """
        return cls.from_weights(*checkpoints.load_directory(directory, cls.model_type), source=str(directory))

    @classmethod
    def from_weights(cls, config: SparseFormerConfig, weights: checkpoints.Weights, source: str) -> Self:
        """Build an encoder with these weights, strictly, in float32 and evaluation mode.

        No random weights are drawn first, which takes most of the time in which a large encoder opens.

        Args:
            config: its configuration.
            weights: its state dict.
            source: origin of the weights, for the error message.

        Raises:
            UserError: the weights do not match the configuration.
        """
        with torch.device("meta"):
            encoder = cls(config)
        computed = {name for name, _ in encoder.named_buffers()} - encoder.state_dict().keys()
        encoder = cls(config) if computed else encoder.to_empty(device="cpu")  # no file holds computed buffers
        checkpoints.load_strictly(encoder, weights, source)
        return encoder.eval()


class SparseFormer(Encoder):
    """Image encoder with few latent tokens, which sample the image only inside their RoIs.

    The initial RoIs, and with them the number of tokens, are an input: all latent tokens of a bootstrapped encoder
    start with the same embedding, so only their RoIs tell them apart (ours).

    Sources: arXiv 2304.03768 (v1), arXiv 2312.01987 (bootstrapped).

    Args:
        config: configuration; `create_encoder(name)` takes it from the table of variants. Weights are random.
    """

    axes = 2
    model_type = checkpoints.IMAGE_ENCODER

    def forward(self, images: Tensor, rois: Tensor | None = None, tokens: int | None = None) -> EncoderOutput:
        """Encode images.

        Args:
            images: float[B, 3, H, W] of any H and W, normalised by `transform`.
            rois: initial RoIs (x1, y1, x2, y2) in image coordinates, float[n, 4] or float[B, n, 4] with any n ≥ 1; None
                for those of the checkpoint.
            tokens: short for `rois=lay_out_rois(tokens)`.

        Raises:
            UserError: the images or RoIs are malformed, both `rois` and `tokens` are given, or one of them for an
                encoder of generation "v1".
        """
        return self.encode_features(self.features(images), starting_rois(self.config, images, rois, tokens))

    def hidden_states(
        self, images: Tensor, layers: Sequence[int], rois: Tensor | None = None, tokens: int | None = None
    ) -> tuple[Tensor, ...]:
        """Compute some of `EncoderOutput.hidden_states`, without the blocks after the last of them.

        Args:
            images, rois, tokens: inputs of `forward`.
            layers: indices of hidden states; negative ones count from the end.
        """
        features = self.features(images)
        return self.states_from_features(features, layers, starting_rois(self.config, images, rois, tokens))

    def features(self, images: Tensor) -> Tensor:
        """Run the stem: images float[B, 3, H, W] -> features float32[B, C, ~H/4, ~W/4], which latent tokens sample."""
        if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape or not images.is_floating_point():
            raise UserError(
                "SparseFormer expects a non-empty batch of RGB images, float[B, 3, H, W], "
                f"got {str(images.dtype).removeprefix('torch.')}{list(images.shape)}."
            )
        return self.stem(images.to(self.stem.conv.weight.dtype))

    @classmethod
    def from_released(cls, file: str | Path, variant: str | SparseFormerConfig) -> "SparseFormer":
        """Load a checkpoint file of the authors, in any of their layouts (v2, older v1, older bootstrapped).

        Args:
            file: .pth (read with weights_only) or .safetensors.
            variant: name of a variant, or a configuration.

        Raises:
            UserError: the file is unreadable, or its keys or shapes do not match the variant.
        """
        config = variant_config(variant) if isinstance(variant, str) else variant
        weights = checkpoints.convert_released(checkpoints.read_weights(file), config)
        name = variant if isinstance(variant, str) else "the given configuration"
        return cls.from_weights(config, weights, source=f"{file} as {name}")


def starting_rois(
    config: SparseFormerConfig, images: Tensor, rois: Tensor | None, tokens: int | None, axes: int = 2
) -> Tensor | None:
    """Check the initial RoIs that a caller requests, and expand them to the batch.

    Args:
        config: configuration of the encoder.
        images: float[B, 3, H, W], or clips float[B, T, 3, H, W].
        rois, tokens: inputs of `SparseFormer.forward`, or of an encoder of clips.
        axes: 2 for images, 3 for clips.

    Returns:
        float32[B, n, 2·axes] on the images' device; None if nothing is requested.
    """
    if rois is None and tokens is None:
        return None
    check_generation(config)
    if rois is None:
        assert tokens is not None
        rois = lay_out_rois(tokens) if axes == 2 else lay_out_clip_rois(tokens)
    elif tokens is not None:
        raise UserError(f"Give either rois or tokens ({tokens}): the number of RoIs is the number of tokens.")
    # A graph capture cannot read numbers from the GPU; its caller has checked them.
    capturing = images.device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    if not (torch.compiler.is_compiling() or capturing):
        check_rois(rois, images.shape[0], axes)
        if rois.shape[-2] not in config.token_counts:
            _log_untrained_count(rois.shape[-2], str(config.token_counts))
    return rois.to(images.device, torch.float32).expand(images.shape[0], -1, -1)


def check_generation(config: SparseFormerConfig) -> None:
    """Raise UserError if an encoder's number of tokens and its initial RoIs are fixed."""
    if config.focus.generation == "v1":
        raise UserError(
            f"This encoder is a SparseFormer v1, whose {config.focus.tokens} tokens have an embedding each: its number "
            "of tokens and its initial RoIs are fixed. Use a bootstrapped one."
        )


@cache
def _log_untrained_count(count: int, trained: str) -> None:
    """Log once that the weights were not trained with this number of tokens."""
    logger.warning("This encoder was trained with %s latent tokens and is used with %d.", trained, count)


def create_encoder(name: str) -> SparseFormer:
    """Create an encoder with random weights.

    Args:
        name: a variant, e.g. "sparseformer-clip-l"; `list_encoders()` returns all of them.
    """
    return SparseFormer(variant_config(name))
