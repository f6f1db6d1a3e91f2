"""SparseFormers among timm's models: `import sparse_vlm; timm.create_model("sparseformer_clip_large", num_classes=10)`.

Their weights have the names of `SparseFormer`, so that each opens the other's files.
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
default_cfgs: dict[str, Any] = {}  # timm's registry reads this name in the module of a model


class TimmSparseFormer(nn.Module):
    """A SparseFormer with the interface of timm's models: float[B, 3, H, W], any H and W -> logits float[B, classes].

    Args:
        config: the numbers.
        num_classes: outputs of the head; 0: none. As many as `config` has: its own head, which for CLIP is the
            projection; else a new Linear with bias.
        in_chans: 3.
        global_pool: the cortex's own pooling, or None.
        drop_rate: dropout before the head.
        drop_path_rate: of the last block of the cortex; it grows linearly from 0.

    Raises:
        UserError: other channels or another pooling.
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
            raise UserError(f"A SparseFormer takes RGB images: in_chans must be 3, got {in_chans}.")
        self._config = _with_head(config, config.cortex.head_dim if num_classes is None else num_classes)
        options = {**config.cortex.options, "drop_rate": drop_rate, "drop_path_rate": drop_path_rate}
        encoder = SparseFormer(replace(self._config, cortex=replace(self._config.cortex, options=options)))
        self.stem, self.focus, self.cortex = encoder.stem, encoder.focus, encoder.cortex
        self.num_features = self.head_hidden_size = self.embed_dim = config.cortex.width
        self.num_prefix_tokens = encoder.num_prefix_tokens
        self._check_pool(global_pool)

    @property
    def num_classes(self) -> int:
        """Outputs of the head; 0: there is none."""
        return self._config.cortex.head_dim

    @property
    def config(self) -> SparseFormerConfig:
        """The numbers with the present head, without dropout: what an encoder directory holds."""
        return self._config

    @config.setter
    def config(self, config: SparseFormerConfig) -> None:
        self._config = _with_head(config, self.num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """float[B, 3, H, W] -> float[B, prefix + n, C] behind the final norm; the n latent tokens have no grid."""
        tokens, _ = self.focus(self.stem(x.to(self.stem.conv.weight.dtype)))
        return self.cortex.trunk.norm(self.cortex(tokens)[-1])

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NLC",
        intermediates_only: bool = False,
    ) -> Any:
        """What leaves blocks of the cortex, as timm's and open_clip's models offer it.

        Args:
            x: float[B, 3, H, W].
            indices: of blocks, the last n of them, or None: all.
            return_prefix_tokens: pairs of latent and prefix tokens instead of the latent ones alone.
            norm: behind the final norm.
            stop_early: leave out the blocks behind the last one asked for.
            output_fmt: "NLC": the tokens have no grid.
            intermediates_only: without the last block's tokens.

        Returns:
            a list of float[B, n, C], or of pairs (float[B, n, C], float[B, prefix, C]); unless `intermediates_only`,
            behind the final tokens float[B, prefix + n, C] of `forward_features`.

        Raises:
            UserError: another `output_fmt`.
        """
        if output_fmt != "NLC":
            raise UserError(
                f"The tokens of a SparseFormer have no grid: output_fmt must be 'NLC', got {output_fmt!r} (open_clip: "
                "image_output_fmt='NLC')."
            )
        blocks, final_norm, prefix = self.cortex.trunk.blocks, self.cortex.trunk.norm, self.num_prefix_tokens
        wanted, last = feature_take_indices(
            len(blocks), indices if indices is None or isinstance(indices, int) else [*indices]
        )
        tokens, _ = self.focus(self.stem(x.to(self.stem.conv.weight.dtype)))
        states = self.cortex(tokens, last + 1 if stop_early else None)[1:]
        taken = [final_norm(states[index]) if norm else states[index] for index in wanted]
        found = [
            (state[:, prefix:], state[:, :prefix]) if return_prefix_tokens else state[:, prefix:] for state in taken
        ]
        return found if intermediates_only else (final_norm(states[-1]), found)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """float[B, prefix + n, C] -> logits float[B, classes]; pooled float[B, C] with `pre_logits`."""
        return self.cortex.trunk.forward_head(x, pre_logits=pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        """The head: a Linear, or an Identity without one."""
        return self.cortex.trunk.get_classifier()

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Puts a new Linear in the place of the head, or none (0).

        Raises:
            UserError: another pooling than the cortex's own.
        """
        self._check_pool(global_pool)
        self.cortex.trunk.reset_classifier(num_classes)
        self._config = replace(self._config, cortex=replace(self._config.cortex, head_dim=num_classes, head_bias=True))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether the cortex's blocks are computed again in the backward pass instead of kept."""
        self.cortex.trunk.set_grad_checkpointing(enable)

    def no_weight_decay(self) -> set[str]:
        """The names of all parameters but those of `decayed_weights`: RoIs, embeddings, norms, biases …"""
        decayed = decayed_weights(self)
        return {name for name, parameter in self.named_parameters() if id(parameter) not in decayed}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layers for layer-wise rates: convolution and repeated unit, last unit, each block, head.

        The final norm belongs to the last block, as in timm's ViTs.
        """
        return {
            "stem": r"^stem|^focus\.(?:initial_|repeated_unit)",
            "focus": r"^focus\.(?:transition|last_unit)|^cortex\.(?:cls_embedding|register_embeddings)",
            "blocks": [(r"^cortex\.trunk\.blocks\.(\d+)", None), (r"^cortex\.trunk\.(?:fc_)?norm", (99999,))],
        }

    def save_pretrained(self, directory: str | Path) -> None:
        """Writes an encoder directory (`SparseFormer.from_pretrained`), atomically."""
        save_directory(directory, self.config, self.state_dict())

    def _check_pool(self, asked: str | None) -> None:
        own = self.cortex.trunk.global_pool
        if asked not in (None, own):
            raise UserError(
                f"This SparseFormer pools by {own!r}, as its teacher does; global_pool {asked!r} is not there."
            )


def timm_name(config: SparseFormerConfig) -> str:
    """The name of an architecture among timm's models, which it is registered under if it is not yet.

    Returns:
        a name of `NAMES` where the numbers are a released variant's, else "sparseformer_" with a digest of them.
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
    """An encoder directory as a timm model, its weights and data configuration included.

    Args:
        directory: of `SparseFormer.save_pretrained`.
        **options: of `TimmSparseFormer`; with another `num_classes` than the directory has, the head is new.

    Raises:
        UserError: no encoder directory, or the weights do not fit.
    """
    config, weights = load_directory(directory)
    model: Any = timm.create_model(timm_name(config), pretrained_cfg_overlay=_data_config(config), **options)
    model.config = config  # the name stands for the numbers; who registered it may have had other pictures or weights
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
    """What timm calls a pretrained configuration, of weights that lie nowhere on the hub."""
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
            raise UserError(f"{name} has no feature maps (features_only): its tokens have no grid.")
        return build_model_with_cfg(partial(TimmSparseFormer, config), name, pretrained, **options)

    create.__name__ = create.__qualname__ = name
    default_cfgs.update(generate_default_cfgs({name: _data_config(config)}))
    register_model(create)


for _name, _variant in NAMES.items():
    _register(_name, VARIANTS[_variant])
