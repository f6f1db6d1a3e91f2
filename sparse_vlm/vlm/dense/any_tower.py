"""A VLM's vision model of any kind: a SparseFormer, a dense ViT of timm, or transformers' own CLIP."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import AutoModel
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import output_capturing

from sparse_vlm.vlm.dense.vit import DenseViTModel
from sparse_vlm.vlm.vision import SparseFormerVisionModel

OWN: dict[str, Any] = {"sparseformer": SparseFormerVisionModel, "dense_vit": DenseViTModel}
# older versions of transformers' own vision models return all hidden states or none
CLIP_SELECTS = hasattr(output_capturing, "selected_hidden_states")


def build_vision_model(config: Any) -> PreTrainedModel:
    """Create the vision model of a configuration.

    Our own are found by the name of their type: in the worker processes of servers (vLLM), the classes of a directory's
    code are not registered with AutoModel, and configurations are instances of copies of their classes.
    """
    model = OWN.get(config.model_type)
    return AutoModel.from_config(config) if model is None else model._from_config(config)


def vision_hidden_states(model: Any, images: Tensor, layers: Sequence[int]) -> Sequence[Tensor]:
    """Compute hidden states of images float[B, 3, H, W]; those of other layers than `layers` may be None."""
    selects = CLIP_SELECTS or model.config.model_type in OWN
    return model(images, output_hidden_states=list(layers) if selects else True).hidden_states
