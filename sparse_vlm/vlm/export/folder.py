"""Export a model directory to a folder of ONNX files, and verify it in ONNX Runtime before it is published."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparse_vlm.encoder.runtime.export import LARGEST, quantise, require_onnx, write_onnx
from sparse_vlm.errors import UserError, one_line
from sparse_vlm.files import check_output, new_directory, write_json
from sparse_vlm.vlm.export.modules import (
    CacheShape,
    Decoder,
    Int8Embedding,
    TokenEmbedding,
    VisionEncoder,
    cache_shapes,
    rois_of,
)
from sparse_vlm.vlm.export.page import write_page
from sparse_vlm.vlm.export.settings import DECODER, EMBEDDING, SETTINGS, VISION, export_settings
from sparse_vlm.vlm.export.verify import TOLERANCE, TOLERANCE_INT8, differences
from sparse_vlm.vlm.loading import load_vlm
from sparse_vlm.vlm.views import View
from sparse_vlm.vlm.vision import SparseFormerVisionModel

BATCH = "batch"


@torch.no_grad()
def export_vlm(
    model_dir: str | Path,
    folder: str | Path,
    *,
    int8: bool = False,
    visual_tokens: int | None = None,
    packages: Path | None = None,
) -> dict[str, float]:
    """Write a model directory's VLM as ONNX files, with its processor's files and export.json (`export_settings`).

    vision_encoder.onnx, embed_tokens.onnx and decoder_model_merged.onnx have the names, inputs and outputs of Optimum's
    exports; the first has the input "initial_rois" in addition, if its number of tokens is free. The folder is only
    written if ONNX Runtime computes what torch computes.

    Args:
        model_dir: the model directory.
        folder: the folder to write.
        int8: compute the Linears in int8 and store the token embeddings in int8. Coordinates stay float32.
        visual_tokens: fix the number of visual tokens per image, without the input "initial_rois"; None: any number, if
            the vision encoder can have it.
        packages: add a page that runs the model in the browser, with the npm packages in this folder; None: no page.

    Returns:
        The relative differences from torch; see `differences`.

    Raises:
        UserError: the model cannot be exported.
        RuntimeError: the outputs of ONNX Runtime do not match.
    """
    require_onnx()
    check_output(folder, model_dir)
    model, processor = load_vlm(model_dir, attn_implementation="eager")
    if visual_tokens is not None:
        model.model.check_views([View(0, visual_tokens)])
        processor.num_image_tokens = visual_tokens
    rois = rois_of(model, processor.num_image_tokens)
    layers = cache_shapes(model)
    if packages is not None and not int8 and _is_large(model):
        raise UserError("The decoder exceeds 2 GB, which a page cannot load: add --int8.")
    with new_directory(folder) as temporary:
        if packages is not None:
            write_page(temporary, packages)
        _write_decoder(model, temporary / DECODER, layers, int8=int8)
        _write_embedding(model, temporary / EMBEDDING, int8=int8)
        _write_vision(model, processor, temporary / VISION, rois, fixed=visual_tokens is not None, int8=int8)
        processor.save_pretrained(temporary)
        model.config.save_pretrained(temporary)
        model.generation_config.save_pretrained(temporary)
        settings = export_settings(model, processor, layers, None if visual_tokens is not None else rois)
        write_json(temporary / SETTINGS, settings)
        found = differences(model, processor, temporary)
        if not all(difference < (TOLERANCE_INT8 if int8 else TOLERANCE) for difference in found.values()):
            raise RuntimeError(f"ONNX Runtime differs from torch by {found}. {folder} was not written.")
    return found


def _write_vision(model: Any, processor: Any, file: Path, rois: Tensor | None, *, fixed: bool, int8: bool) -> None:
    side = processor.image_processor.preprocessing().crop
    inputs = {"pixel_values": torch.randn(2, 3, side, side)}
    sizes: dict[str, dict[int, Any]] = {"pixel_values": {0: torch.export.Dim(BATCH)}}
    if isinstance(model.model.vision_tower, SparseFormerVisionModel):  # it takes any image size
        sizes["pixel_values"] |= {2: torch.export.Dim("height"), 3: torch.export.Dim("width")}
    if rois is not None and not fixed:
        inputs["initial_rois"] = rois.expand(2, -1, -1).contiguous()
        sizes["initial_rois"] = {0: torch.export.Dim.AUTO, 1: torch.export.Dim("tokens")}
    _write(VisionEncoder(model, rois if fixed else None), inputs, file, ["image_features"], sizes, int8=int8)


def _write_embedding(model: Any, file: Path, *, int8: bool) -> None:
    embedding = TokenEmbedding(model)
    module = Int8Embedding(embedding, model.config.get_text_config().vocab_size) if int8 else embedding
    sizes = {"input_ids": {0: torch.export.Dim(BATCH), 1: torch.export.Dim("sequence")}}
    _write(module, {"input_ids": torch.zeros(2, 3, dtype=torch.long)}, file, ["inputs_embeds"], sizes, int8=False)


def _write_decoder(model: Any, file: Path, layers: Sequence[CacheShape], *, int8: bool) -> None:
    rows, past, count = 2, 4, 3  # for tracing
    batch, sequence, earlier = (torch.export.Dim(name) for name in (BATCH, "sequence", "past_sequence"))
    same: Any = torch.export.Dim.AUTO  # torch finds the relation to the named sizes, which it warns of naming twice
    width = model.get_input_embeddings().weight.shape[1]
    inputs = {
        "inputs_embeds": torch.zeros(rows, count, width),
        "attention_mask": torch.ones(rows, past + count, dtype=torch.long),
        "position_ids": torch.arange(past, past + count).expand(rows, -1).contiguous(),
    }
    sizes: dict[str, dict[int, Any]] = {
        "inputs_embeds": {0: batch, 1: sequence},
        "attention_mask": {0: same, 1: same},
        "position_ids": {0: same, 1: same},
    }
    outputs = ["logits"]
    for index, layer in enumerate(layers):
        for name, channels in (("key", layer.key_width), ("value", layer.value_width)):
            inputs[f"past_key_values.{index}.{name}"] = torch.zeros(rows, layer.heads, past, channels)
            sizes[f"past_key_values.{index}.{name}"] = {0: same, 2: same if outputs[1:] else earlier}
            outputs.append(f"present.{index}.{name}")
    with _exportable(model):
        _write(Decoder(model), inputs, file, outputs, sizes, int8=int8)


def _write(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    file: Path,
    outputs: Sequence[str],
    sizes: Mapping[str, dict[int, Any]],
    *,
    int8: bool,
) -> None:
    write_onnx(module.eval(), inputs, file, outputs, sizes=sizes, external_data=_is_large(module))
    if int8:
        quantise(file, module, external_data=_is_large(module))


def _is_large(module: nn.Module) -> bool:
    """Return whether the float32 weights of a module exceed a single ONNX file."""
    return sum(4 * parameter.numel() for parameter in module.parameters()) >= LARGEST


@contextmanager
def _exportable(model: Any) -> Iterator[None]:
    """Turn torch's errors into a UserError: a language model may compute what has no ONNX form."""
    try:
        yield
    except torch.onnx.errors.OnnxExporterError as error:
        kind = model.config.get_text_config().model_type
        raise UserError(f"A language model of type {kind!r} has no ONNX form: {one_line(error)}") from error
