"""A program that does to a model directory what SGLang's Transformers backend does, without SGLang's CUDA kernels.

    python sglang_backend.py DIRECTORY PROMPT IMAGE DTYPE OUT.safetensors

It follows sglang 0.5.23: `TransformersBase` and `MultiModalMixin` in sglang/srt/models/transformers.py,
`resolve_transformers_arch` in sglang/srt/model_loader/utils.py, and `TransformersAutoMultimodalProcessor` in
sglang/srt/multimodal/processors/transformers_auto.py. OUT has the last hidden states of the prompt and the features of
the image. The last line of the output names the dtypes of the parameters that compute coordinates.
"""

import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

BATCH = object()  # stands for SGLang's ForwardBatch, which only its attention reads


class ReplicatedLinear(nn.Module):
    """SGLang's layer in place of an `nn.Linear`: not of its type, and with parameters in the default dtype."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(linear.out_features, linear.in_features))
        self.bias = None if linear.bias is None else nn.Parameter(torch.empty(linear.out_features))

    def forward(self, inputs: Tensor) -> Tensor:
        return F.linear(inputs, self.weight, self.bias)


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    attention_instances: Any = None,
    forward_batch: Any = None,
    **unused: object,
) -> tuple[Tensor, None]:
    """Causal attention within one prompt, with the arguments that SGLang's attention must receive."""
    assert attention_instances[module.layer_idx] == module.layer_idx
    assert forward_batch is BATCH
    out = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=True)
    return out.transpose(1, 2), None


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """SGLang's `_init_on_device_without_buffers`."""
    register = nn.Module.register_parameter

    def register_empty(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        register(module, name, param)
        kept = module._parameters[name]
        if kept is not None:
            module._parameters[name] = type(kept)(kept.to("meta"), requires_grad=kept.requires_grad)

    nn.Module.register_parameter = register_empty  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def replace_linear(module: nn.Module) -> None:
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Linear):
            setattr(module, name, ReplicatedLinear(child))
        else:
            replace_linear(child)


def materialize(module: nn.Module) -> None:
    for name, param in list(module.named_parameters(recurse=False)):
        if param.is_meta:
            setattr(module, name, nn.Parameter(torch.full_like(param, torch.nan, device="cpu")))
    for child in module.children():
        materialize(child)


def open_backbone(directory: str, config: Any) -> nn.Module:
    """Open the class that the directory names `AutoModel`, as SGLang does, in the default dtype."""
    from transformers import AutoModel
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    kind = get_class_from_dynamic_module(config.auto_map["AutoModel"], directory)
    assert kind.is_backend_compatible()
    assert kind._supports_attention_backend
    config.get_text_config()._attn_implementation = "sglang"
    with parameters_on_meta():
        model = AutoModel.from_config(config, torch_dtype=torch.get_default_dtype(), trust_remote_code=True)
    assert type(model).__name__ == kind.__name__
    replace_linear(model)
    materialize(model)
    weights = {}
    for file in Path(directory).glob("*.safetensors"):
        weights |= load_file(file)
    for name, param in model.named_parameters():
        param.data.copy_(weights[f"model.{name}"])
    return model


@torch.no_grad()
def main(directory: str, prompt: str, image: str, dtype: str, out: str) -> None:
    sys.modules["sparse_vlm"] = None  # type: ignore[assignment]  # the directory's own code must do
    from transformers import AutoConfig, AutoProcessor
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register("sglang", attention)
    config = AutoConfig.from_pretrained(directory, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(directory, trust_remote_code=True)
    torch.set_default_dtype(getattr(torch, dtype))
    model: Any = open_backbone(directory, config)
    inputs = processor(text=prompt, images=[Image.open(image).convert("RGB")], return_tensors="pt")
    ids, pixels = inputs["input_ids"].flatten(), inputs["pixel_values"]
    assert (ids == config.image_token_id).sum() == config.image_seq_length
    assert "pixel_values" in inspect.signature(model.get_image_features).parameters
    positions = torch.arange(len(ids))
    instances = {layer: layer for layer in range(config.get_text_config().num_hidden_layers)}
    hidden = model(
        input_ids=ids[None],
        inputs_embeds=None,
        use_cache=False,
        position_ids=positions[None],
        return_dict=False,
        forward_batch=BATCH,
        attention_instances=instances,
        pixel_values=pixels,
    )[0][0]
    features = model.get_image_features(pixel_values=pixels.to(getattr(torch, dtype))).pooler_output
    islands = [
        module for module in model.modules() if any(kind.__name__ == "Float32Module" for kind in type(module).__mro__)
    ]
    dtypes = {str(param.dtype) for module in islands for param in module.parameters()}
    save_file({"hidden": hidden.clone(), "features": torch.cat(list(features))}, out)
    print("coordinates:", *sorted(dtypes))


if __name__ == "__main__":
    main(*sys.argv[1:])
