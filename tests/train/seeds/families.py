"""A small model of each family of seeds, with random weights, in the format in which its authors publish theirs."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
from open_clip.model import CLIP, CustomTextCLIP
from safetensors.torch import save_file
from torch import Tensor, nn

SMALL_TEXT = {"context_length": 8, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}
Weights = dict[str, Tensor]


def random_weights(model: nn.Module) -> Weights:
    """Return the initial weights plus noise: biases, norms and layer scales are otherwise 0, 1 or 1e-5."""
    return {
        name: value + (0.3 if ".ls" in name else 0.02) * torch.randn_like(value)
        for name, value in model.state_dict().items()
    }


def augreg(folder: Path) -> str:
    """timm's file, with the classification head."""
    name, file = "vit_tiny_patch16_224.augreg_in21k_ft_in1k", folder / "model.safetensors"
    save_file(random_weights(timm.create_model(name)), file)
    return f"timm:{name}@{file}"


def dinov2(folder: Path) -> str:
    """The authors' file, with iBOT's mask token."""
    name, file = "vit_small_patch14_dinov2.lvd142m", folder / "dinov2_vits14_pretrain.pth"
    weights = random_weights(timm.create_model(name))
    torch.save(weights | {"mask_token": torch.zeros(1, weights["cls_token"].shape[-1])}, file)
    return f"timm:{name}@{file}"


def dinov2_registers(folder: Path) -> str:
    """The authors' file: CLS and its position are separate, and iBOT's mask token is included."""
    name, file = "vit_small_patch14_reg4_dinov2.lvd142m", folder / "dinov2_vits14_reg4_pretrain.pth"
    weights = random_weights(timm.create_model(name))
    position = torch.randn_like(weights["cls_token"])
    weights["register_tokens"] = weights.pop("reg_token")
    weights["cls_token"] = weights["cls_token"] - position
    weights["pos_embed"] = torch.cat([position, weights["pos_embed"]], dim=1)
    weights["mask_token"] = torch.zeros(1, position.shape[-1])
    torch.save(weights, file)
    return f"timm:{name}@{file}"


def mae(folder: Path) -> str:
    """The authors' file: the encoder without a head, under "model"."""
    name, file = "vit_base_patch16_224.mae", folder / "mae_pretrain_vit_base.pth"
    torch.save({"model": random_weights(timm.create_model(name))}, file)
    return f"timm:{name}@{file}"


def torchscript_archive(weights: Weights, file: Path) -> None:
    """Write weights as OpenAI does: in a module of TorchScript."""
    root = nn.Module()
    for name, value in weights.items():
        *path, last = name.split(".")
        module = root
        for part in path:
            if not hasattr(module, part):
                module.add_module(part, nn.Module())
            module = getattr(module, part)
        module.register_buffer(last, value)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit", FutureWarning)
        torch.jit.script(root).save(str(file))


def openai_clip(folder: Path) -> str:
    """OpenAI's file: float16 in TorchScript, with three numbers beside the weights."""
    name, file = "ViT-B-32", folder / "ViT-B-32.pt"
    config: dict[str, Any] = dict(open_clip.get_model_config(name) or {})
    weights = {key: value.half() for key, value in random_weights(CLIP(**config, quick_gelu=True)).items()}
    numbers = {"input_resolution": 224, "context_length": 77, "vocab_size": 49408}
    torchscript_archive(weights | {key: torch.tensor(value) for key, value in numbers.items()}, file)
    return f"open_clip:{name}/openai@{file}"


def hub_directory(folder: Path, name: str, tag: str, file: str) -> str:
    """A directory as on the hub: open_clip's configuration and weights. The text encoder is smaller."""
    config: dict[str, Any] = dict(open_clip.get_model_config(name) or {}) | {"text_cfg": SMALL_TEXT}
    kind = CustomTextCLIP if config.get("custom_text") else CLIP
    clip: Any = kind(**{key: value for key, value in config.items() if key != "custom_text"})
    about: dict[str, Any] = open_clip.get_pretrained_cfg(name, tag)
    preprocess = {key: about[key] for key in ("mean", "std", "interpolation", "resize_mode")}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    save = save_file if file.endswith(".safetensors") else torch.save
    save(random_weights(clip), folder / file)
    return str(folder)


def datacomp_clip(folder: Path) -> str:
    """open_clip's own ViT with GELU."""
    return hub_directory(folder, "ViT-B-32", "datacomp_xl_s13b_b90k", "open_clip_pytorch_model.bin")


def siglip_2(folder: Path) -> str:
    """timm's ViT in open_clip: attention pooling, no CLS and no projection."""
    return hub_directory(folder, "ViT-B-32-SigLIP2-256", "webli", "open_clip_model.safetensors")


def vitamin(folder: Path) -> str:
    """timm's ViT in open_clip: convolutional stem, average pooling and a projection."""
    return hub_directory(folder, "ViTamin-S", "datacomp1b", "open_clip_pytorch_model.bin")


# Family -> a function that writes a file to a folder and returns the specification of the teacher.
FAMILIES: dict[str, Callable[[Path], str]] = {
    "augreg": augreg,
    "openai clip": openai_clip,
    "datacomp clip": datacomp_clip,
    "siglip 2": siglip_2,
    "dinov2": dinov2,
    "dinov2 with registers": dinov2_registers,
    "mae": mae,
    "vitamin": vitamin,
}
