"""Recorded outputs of the authors' library on tiny models (tests/fixtures/official), and these models in our code."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from sparse_vlm.encoder import CortexConfig, FocusConfig, SparseFormer, SparseFormerConfig, StemConfig

DIRECTORY = Path(__file__).parents[2] / "fixtures" / "official"
NAMES = ("v1_tiny", "btsp_augreg_tiny", "btsp_clip_tiny")
LAYOUTS = {name: ("weights", "oldkeys_v1" if name == "v1_tiny" else "oldkeys_btsp") for name in NAMES}
CASES = ("a", "b", "c")  # 2×64×64, 2×64×96, 1×75×50

# Tolerated absolute differences in float32. The outputs of units count as tokens; we chose the bound of the stem.
TOLERANCES = {"output": 2e-5, "roi": 1e-5, "tokens": 1e-3, "feat": 1e-5}


def official_config(name: str) -> SparseFormerConfig:
    """Our configuration of an official tiny model."""
    theirs = json.loads((DIRECTORY / f"{name}.json").read_text())["config"]
    details, (width, cortex_width, *blocks) = theirs["compatible_config"], theirs["width_configs"]
    v1 = name == "v1_tiny"
    focus = FocusConfig(
        generation="v1" if v1 else "bootstrapped",
        tokens=theirs["num_latent_tokens"],
        width=width,
        heads=64 if v1 else width // 64,
        points=theirs["num_sampling_points"],
        repeats=theirs["repeats"][0],
        generator_width=width // 4 if v1 else 128,
        last_heads=64 if v1 else 0,
        last_generator_width=cortex_width // 4 if v1 else 128,
        eps=details["ln_eps"],
    )
    cortex = CortexConfig(
        "vit_base_patch16_clip_quickgelu_224" if details["clip_quick_gelu"] else "vit_base_patch16_224",
        depth=len(blocks),
        width=cortex_width,
        heads=64 if v1 else cortex_width // 64,
        head_dim=theirs["proj_dim"],
        head_bias=theirs["proj_bias"],
        norm_eps=details["ln_eps"],
        options={"class_token": False, "global_pool": "avg", "fc_norm": True} if v1 else {},
    )
    return SparseFormerConfig(StemConfig(theirs["conv_dim"]), focus, cortex)


def weights_file(name: str, layout: str = "weights") -> Path:
    """The checkpoint of an official tiny model in one of its layouts."""
    return DIRECTORY / f"{name}.{layout}.safetensors"


def load_official(name: str, layout: str = "weights") -> SparseFormer:
    """An official tiny model in our code."""
    return SparseFormer.from_released(weights_file(name, layout), official_config(name))


def recorded(name: str, case: str) -> dict[str, Tensor]:
    """float32 inputs and outputs of the authors' code for one case, e.g. "input", "unit0.roi"."""
    tensors = load_file(DIRECTORY / f"{name}.io.safetensors")
    return {key.removeprefix(f"{case}."): value.float() for key, value in tensors.items() if key.startswith(f"{case}.")}


@torch.no_grad()
def run(encoder: SparseFormer, images: Tensor) -> dict[str, Tensor]:
    """Compute the quantities of `recorded` with our code; hooks read the outputs of the units."""
    found: dict[str, Tensor] = {}

    def keep_unit(index: int) -> Callable[[torch.nn.Module, tuple, tuple[Tensor, Tensor]], None]:
        def hook(module: torch.nn.Module, inputs: tuple, result: tuple[Tensor, Tensor]) -> None:
            found[f"unit{index}.embedding"], found[f"unit{index}.roi"] = result  # of the last repetition

        return hook

    def keep_features(module: torch.nn.Module, inputs: tuple, result: Tensor) -> None:
        found["feat"] = result

    hooks = [
        encoder.stem.register_forward_hook(keep_features),
        encoder.focus.repeated_unit.register_forward_hook(keep_unit(0)),
        encoder.focus.last_unit.register_forward_hook(keep_unit(1)),
    ]
    output = encoder(images)
    for hook in hooks:
        hook.remove()
    for index, state in enumerate(output.hidden_states[1:], start=2):
        found[f"unit{index}.embedding"], found[f"unit{index}.roi"] = state, output.rois[-1]
    found |= {f"roi_step{step}": rois for step, rois in enumerate(output.rois)}
    normed = encoder.cortex.trunk.fc_norm if isinstance(encoder.cortex.trunk.norm, torch.nn.Identity) else None
    norm = normed if normed is not None else encoder.cortex.trunk.norm
    return found | {"tokens": output.tokens, "tokens_normed": norm(output.tokens), "output": output.pooled}


def relative_errors(encoder: SparseFormer, name: str, case: str) -> dict[str, float]:
    """Greatest absolute error of each recorded quantity, in units of its tolerance: ≤ 1 is parity.

    A quantity with another shape, or that only one side has, has an infinite error.
    """
    expected = recorded(name, case)
    images = expected.pop("input").to(encoder.stem.conv.weight.device)
    ours = {key: value.cpu() for key, value in run(encoder, images).items()}
    errors = {}
    for key, value in expected.items():
        same = key in ours and ours[key].shape == value.shape
        kind = "roi" if "roi" in key else key if key in TOLERANCES else "tokens"
        error = (ours[key] - value).abs().max().item() if same else float("inf")
        errors[key] = error / TOLERANCES[kind]
    if extra := ours.keys() - expected.keys():
        errors |= dict.fromkeys(extra, float("inf"))
    return errors
