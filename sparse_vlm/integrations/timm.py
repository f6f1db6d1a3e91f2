"""SparseFormers as timm models: `import sparse_vlm; timm.create_model("sparseformer_clip_large", num_classes=10)`.

Their weights have the same names as those of `SparseFormer`, so that their files are interchangeable.
"""

import hashlib
import json
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import timm
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from sparse_vlm.encoder import SparseFormer, SparseFormerConfig
from sparse_vlm.encoder.checkpoints import load_directory, load_strictly, save_directory
from sparse_vlm.encoder.model import starting_rois
from sparse_vlm.encoder.variants import VARIANTS
from sparse_vlm.errors import UserError
from sparse_vlm.weight_decay import decayed_weights

NAMES = {
    "sparseformer_v1_tiny": "sparseformer-v1-t",
    "sparseformer_v1_small": "sparseformer-v1-s",
    "sparseformer_v1_base": "sparseformer-v1-b",
    "sparseformer_augreg_base": "sparseformer-augreg-b",
    "sparseformer_augreg_large": "sparseformer-augreg-l",
    "sparseformer_clip_base": "sparseformer-clip-b",
    "sparseformer_clip_large": "sparseformer-clip-l",
}
HEAD = "cortex.trunk.head"
default_cfgs: dict[str, Any] = {}  # timm looks this name up in the module of a model


class TimmSparseFormer(nn.Module):
    """SparseFormer with the interface of timm models: images float[B, 3, H, W] -> logits float[B, classes].

    Args:
        config: configuration of the encoder.
        num_classes: outputs of the head; 0 for no head. The same number as in `config`, or None, keeps its head, which
            is the projection in CLIP; otherwise the head is a new Linear with bias.
        in_chans: input channels, must be 3.
        global_pool: pooling of the cortex, or None; other values are refused.
        drop_rate: dropout before the head.
        drop_path_rate: drop path of the last block of the cortex, which increases linearly from 0 in the first block.
    """

    def __init__(
        self,
        config: SparseFormerConfig,
        num_classes: int | None = None,
        in_chans: int = 3,
        global_pool: str | None = None,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if in_chans != 3:
            raise UserError(f"A SparseFormer needs RGB images: in_chans must be 3, got {in_chans}.")
        self._config = _with_head(config, config.cortex.head_dim if num_classes is None else num_classes)
        options = {**config.cortex.options, "drop_rate": drop_rate, "drop_path_rate": drop_path_rate}
        encoder = SparseFormer(replace(self._config, cortex=replace(self._config.cortex, options=options)))
        self.stem, self.focus, self.cortex = encoder.stem, encoder.focus, encoder.cortex
        self.num_features = self.head_hidden_size = self.embed_dim = config.cortex.width
        self.num_prefix_tokens = encoder.num_prefix_tokens
        self._check_pool(global_pool)

    @property
    def num_classes(self) -> int:
        """Outputs of the head; 0 without a head."""
        return self._config.cortex.head_dim

    @property
    def config(self) -> SparseFormerConfig:
        """Configuration with the current head, without dropout, as saved in an encoder directory."""
        return self._config

    @config.setter
    def config(self, config: SparseFormerConfig) -> None:
        self._config = _with_head(config, self.num_classes)

    def forward_features(self, x: Tensor, rois: Tensor | None = None, tokens: int | None = None) -> Tensor:
        """Images float[B, 3, H, W] -> tokens float[B, prefix + n, C] after the final norm.

        `rois` and `tokens` are those of `SparseFormer.forward`.
        """
        return self.cortex.trunk.norm(self.cortex(self._focus(x, rois, tokens))[-1])

    def _focus(self, x: Tensor, rois: Tensor | None, tokens: int | None) -> Tensor:
        features = self.stem(x.to(self.stem.conv.weight.dtype))
        return self.focus(features, starting_rois(self.config, x, rois, tokens))[0]

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NLC",
        intermediates_only: bool = False,
        rois: Tensor | None = None,
        tokens: int | None = None,
    ) -> Any:
        """Compute outputs of blocks of the cortex, with the interface of timm and open_clip.

        Args:
            x: images float[B, 3, H, W].
            indices: indices of blocks; an int n for the last n blocks; None for all.
            return_prefix_tokens: return pairs of latent and prefix tokens instead of latent tokens.
            norm: apply the final norm.
            stop_early: skip the blocks after the last one requested.
            output_fmt: must be "NLC", because the tokens have no grid.
            intermediates_only: do not return the final tokens.
            rois, tokens: those of `SparseFormer.forward`.

        Returns:
            A list of float[B, n, C], or of pairs (float[B, n, C], float[B, prefix, C]). Unless `intermediates_only`, it
            is the second element of a tuple, after the final tokens float[B, prefix + n, C] of `forward_features`.
        """
        if output_fmt != "NLC":
            raise UserError(
                f"The tokens of a SparseFormer have no grid: output_fmt must be 'NLC', got {output_fmt!r} (open_clip: "
                "image_output_fmt='NLC')."
            )
        blocks, final_norm, prefix = self.cortex.trunk.blocks, self.cortex.trunk.norm, self.num_prefix_tokens
        selected, last = feature_take_indices(
            len(blocks), indices if indices is None or isinstance(indices, int) else [*indices]
        )
        latent = self._focus(x, rois, tokens)
        states = self.cortex(latent, last + 1 if stop_early else None)[1:]
        taken = [final_norm(states[index]) if norm else states[index] for index in selected]
        found = [
            (state[:, prefix:], state[:, :prefix]) if return_prefix_tokens else state[:, prefix:] for state in taken
        ]
        return found if intermediates_only else (final_norm(states[-1]), found)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens float[B, prefix + n, C] -> logits float[B, classes], or pooled float[B, C] with `pre_logits`."""
        return self.cortex.trunk.forward_head(x, pre_logits=pre_logits)

    def forward(self, x: Tensor, rois: Tensor | None = None, tokens: int | None = None) -> Tensor:
        return self.forward_head(self.forward_features(x, rois, tokens))

    def get_classifier(self) -> nn.Module:
        """Return the head: a Linear, or an Identity without a head."""
        return self.cortex.trunk.get_classifier()

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head by a new Linear, or remove it if `num_classes` is 0. The pooling cannot be changed."""
        self._check_pool(global_pool)
        self.cortex.trunk.reset_classifier(num_classes)
        self._config = replace(self._config, cortex=replace(self._config.cortex, head_dim=num_classes, head_bias=True))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks of the cortex in the backward pass instead of storing their activations."""
        self.cortex.trunk.set_grad_checkpointing(enable)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters without weight decay: RoIs, embeddings, norms, biases … See `decayed_weights`."""
        decayed = decayed_weights(self)
        return {name for name, parameter in self.named_parameters() if id(parameter) not in decayed}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Group parameters for layer-wise learning rates: stem and repeated unit, last unit, each block, head.

        The final norm belongs to the last block, as in timm's ViTs.
        """
        return {
            "stem": r"^stem|^focus\.(?:initial_|repeated_unit)",
            "focus": r"^focus\.(?:transition|last_unit)|^cortex\.(?:cls_embedding|register_embeddings)",
            "blocks": [(r"^cortex\.trunk\.blocks\.(\d+)", None), (r"^cortex\.trunk\.(?:fc_)?norm", (99999,))],
        }

    def save_pretrained(self, directory: str | Path) -> None:
        """Write an encoder directory, for `SparseFormer.from_pretrained`, atomically."""
        save_directory(directory, self.config, self.state_dict())

    def _check_pool(self, asked: str | None) -> None:
        own = self.cortex.trunk.global_pool
        if asked not in (None, own):
            raise UserError(
                f"This SparseFormer has the pooling {own!r} of its teacher; global_pool {asked!r} is not available."
            )


def timm_name(config: SparseFormerConfig) -> str:
    """Return the name of an architecture in timm, after registering it if necessary.

    Returns:
        A name from `NAMES` for the architecture of a released variant, otherwise "sparseformer_" and a digest.
    """
    architecture = _architecture(config)
    for name, variant in NAMES.items():
        if _architecture(VARIANTS[variant]) == architecture:
            return name
    digest = hashlib.blake2b(json.dumps(architecture, sort_keys=True).encode(), digest_size=6).hexdigest()
    name = f"sparseformer_{digest}"
    if not timm.is_model(name):
        _register(name, config)
    return name


def create_from_directory(directory: str | Path, **options: Any) -> TimmSparseFormer:
    """Load an encoder directory as a timm model, with its weights and data configuration.

    Args:
        directory: written by `SparseFormer.save_pretrained`.
        **options: arguments of `TimmSparseFormer`. If `num_classes` differs from the directory's, the head is new.

    Raises:
        UserError: `directory` is not an encoder directory, or its weights do not match its configuration.
    """
    config, weights = load_directory(directory)
    model: Any = timm.create_model(timm_name(config), pretrained_cfg_overlay=_data_config(config), **options)
    model.config = config  # the name only stands for the architecture: preprocessing, teacher and licence may differ
    if model.num_classes != config.cortex.head_dim:
        new_head = {name: value for name, value in model.state_dict().items() if name.startswith(f"{HEAD}.")}
        weights = {name: value for name, value in weights.items() if not name.startswith(f"{HEAD}.")} | new_head
    load_strictly(model, weights, source=str(directory))
    return model


def _with_head(config: SparseFormerConfig, num_classes: int) -> SparseFormerConfig:
    if num_classes == config.cortex.head_dim:
        return config
    return replace(config, cortex=replace(config.cortex, head_dim=num_classes, head_bias=True))


def _architecture(config: SparseFormerConfig) -> dict[str, Any]:
    return {part: asdict(getattr(config, part)) for part in ("stem", "focus", "cortex")}


def _data_config(config: SparseFormerConfig) -> dict[str, Any]:
    """timm's pretrained configuration, for weights that are not on the hub."""
    data = config.preprocessing
    return {
        "input_size": (3, data.crop, data.crop),
        "crop_pct": data.crop / data.resize,
        "crop_mode": "squash" if data.resize_mode == "squash" else "center",
        "interpolation": data.interpolation,
        "mean": data.mean,
        "std": data.std,
        "num_classes": config.cortex.head_dim,
        "first_conv": "stem.conv",
        "classifier": HEAD,
        "license": config.licence or None,
    }


def _register(name: str, config: SparseFormerConfig) -> None:
    def create(pretrained: bool = False, **options: Any) -> nn.Module:
        if options.pop("features_only", False):
            raise UserError(f"{name} does not support features_only: its tokens have no grid.")
        return build_model_with_cfg(partial(TimmSparseFormer, config), name, pretrained, **options)

    create.__name__ = create.__qualname__ = name
    default_cfgs.update(generate_default_cfgs({name: _data_config(config)}))
    register_model(create)


for _name, _variant in NAMES.items():
    _register(_name, VARIANTS[_variant])
