"""Comparison of an exported VLM in ONNX Runtime with the model in torch."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sparse_vlm.errors import UserError
from sparse_vlm.vlm.chat import encode_prompt
from sparse_vlm.vlm.export.runtime import OnnxVLM
from sparse_vlm.vlm.processing import SparseVLMProcessor

STEPS = 3  # tokens after the prompt
TOLERANCE = 1e-3  # relative difference from torch
TOLERANCE_INT8 = 0.5


@torch.no_grad()
def differences(model: Any, processor: SparseVLMProcessor, folder: Path) -> dict[str, float]:
    """Return the relative difference |a − b| / |b| (2-norms) between ONNX Runtime and torch.

    Measured on two images of noise with a question, for the visual tokens and for the logits of the first tokens of the
    answer. If the export takes any number of visual tokens, one more than its default is measured too.

    Args:
        model: the exported model, in float32.
        processor: its processor, with the number of visual tokens of the export.
        folder: folder of the export.

    Raises:
        UserError: the model returns NaN or infinite values.
    """
    exported = OnnxVLM(folder)
    noise = np.random.default_rng(0).integers(0, 256, (2, 60, 90, 3), np.uint8)
    images = [Image.fromarray(pixels) for pixels in noise]
    counts = [processor.num_image_tokens]
    if exported.settings["initial_rois"] is not None:
        counts.append(counts[0] + 1)
    pairs: dict[str, list[tuple[Tensor, Tensor]]] = {"visual tokens": [], "logits": []}
    for count in counts:
        inputs = encode_prompt(processor, images, "What is shown?", visual_tokens=count)
        features = model.model.get_image_features(inputs["pixel_values"], views=inputs["views"]).pooler_output
        ours = inputs if count != counts[0] else encode_prompt(exported.processor, images, "What is shown?")
        pairs["visual tokens"].append(
            (torch.from_numpy(np.concatenate(exported.encode_images(ours))), torch.cat(features))
        )
        forced = inputs["input_ids"][0, -STEPS:]
        found = list(exported.generate(ours, STEPS + 1, forced.tolist()))
        whole = torch.cat([inputs["input_ids"], forced[None]], dim=1)
        others = {"pixel_values": inputs["pixel_values"], "views": inputs["views"]}
        expected = model(input_ids=whole, attention_mask=torch.ones_like(whole), **others).logits[0, -STEPS - 1 :]
        pairs["logits"].append((torch.from_numpy(np.stack(found)), expected))
    return {name: max(_relative(name, *pair) for pair in compared) for name, compared in pairs.items()}


def _relative(name: str, found: Tensor, expected: Tensor) -> float:
    if not expected.isfinite().all():
        raise UserError(f"The model's {name} are not finite: its weights come from a training run that diverged.")
    return ((found - expected).norm() / expected.norm()).item()
