"""An exported VLM in ONNX Runtime: answers to questions about images, without torch's model."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import BatchFeature

from sparse_vlm.encoder.preprocessing import remove_canvas
from sparse_vlm.encoder.rois import lay_out_rois
from sparse_vlm.errors import UserError, optional_import
from sparse_vlm.files import read_object
from sparse_vlm.vlm.chat import Images, encode_prompt
from sparse_vlm.vlm.export.settings import DECODER, EMBEDDING, SETTINGS, VISION
from sparse_vlm.vlm.processing import SparseVLMProcessor
from sparse_vlm.vlm.views import Box, View, unpack_views


class OnnxVLM:
    """A folder of `export_vlm`, opened in ONNX Runtime on the CPU.

    Args:
        folder: the folder.
        threads: number of threads of ONNX Runtime; 0: its choice.
    """

    def __init__(self, folder: str | Path, threads: int = 0) -> None:
        folder = Path(folder)
        if not (folder / SETTINGS).is_file():
            raise UserError(f"{folder} has no {SETTINGS}: it is not a folder of `sparse-vlm export MODEL FOLDER`.")
        with optional_import("A VLM in ONNX", "export"):
            import onnxruntime
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.settings = read_object(folder / SETTINGS)
        self.processor: Any = SparseVLMProcessor.from_pretrained(folder)
        self._vision, self._embedding, self._decoder = (
            onnxruntime.InferenceSession(folder / name, options, providers=["CPUExecutionProvider"])
            for name in (VISION, EMBEDDING, DECODER)
        )

    def answer(
        self,
        image: Images,
        question: str,
        max_new_tokens: int = 256,
        *,
        system: str | None = None,
        visual_tokens: int | None = None,
        regions: Sequence[Box] = (),
    ) -> str:
        """Answer a question about images greedily; arguments and result are those of `sparse_vlm.vlm.chat.answer`."""
        inputs = encode_prompt(self.processor, image, question, system, visual_tokens=visual_tokens, regions=regions)
        ids = []
        for logits in self.generate(inputs, max_new_tokens):
            ids.append(int(logits.argmax()))
            if ids[-1] in self.settings["eos_token_ids"]:
                break
        return self.processor.decode(ids, skip_special_tokens=True).strip()

    def generate(self, inputs: BatchFeature, max_new_tokens: int, forced: Sequence[int] = ()) -> Iterator[np.ndarray]:
        """Yield the logits float32[vocabulary] of each new token of an answer; the most likely one is appended.

        Args:
            inputs: an encoded prompt of `encode_prompt`.
            max_new_tokens: number of new tokens.
            forced: append these tokens instead, as far as they go.

        Raises:
            UserError: the prompt and the new tokens exceed the language model's positions.
        """
        ids = inputs["input_ids"].numpy()
        positions, length = self.settings["positions"], ids.shape[1]
        if positions is not None and length + max_new_tokens > positions:
            raise UserError(
                f"The prompt and an answer of {max_new_tokens} tokens make {length + max_new_tokens} tokens, more than "
                f"the {positions} of this model. Ask for shorter answers."
            )
        embeddings = self._embed(ids)
        placeholders = ids[0] == self.settings["image_token"]["id"]
        if placeholders.any():
            embeddings[0, placeholders] = np.concatenate(self.encode_images(inputs))
        cache = {
            f"past_key_values.{index}.{name}": np.zeros((1, layer["heads"], 0, layer[f"{name}_width"]), np.float32)
            for index, layer in enumerate(self.settings["layers"])
            for name in ("key", "value")
        }
        for step in range(max_new_tokens):
            logits, *present = self._decoder.run(
                None,
                {
                    "inputs_embeds": embeddings,
                    "attention_mask": np.ones((1, length), np.int64),
                    "position_ids": np.arange(length - embeddings.shape[1], length)[None],
                    **cache,
                },
            )
            yield logits[0, -1]
            token = forced[step] if step < len(forced) else int(logits[0, -1].argmax())
            embeddings, cache = self._embed(np.array([[token]])), dict(zip(cache, present, strict=True))
            length += 1

    def encode_images(self, inputs: BatchFeature) -> list[np.ndarray]:
        """Return the embeddings float32[n, D] of each view of an encoded prompt, in the order of the placeholders."""
        images: Tensor = inputs["pixel_values"]
        default = self.settings["visual_tokens"]
        views = [View(place, default) for place in range(len(images))]
        if "views" in inputs:
            views = unpack_views(inputs["views"])
        return [self._encode(remove_canvas(images[view.image]), view) for view in views]

    def _encode(self, image: Tensor, view: View) -> np.ndarray:
        feed = {"pixel_values": image[None].numpy()}
        default = self.settings["visual_tokens"]
        if self.settings["initial_rois"] is not None:
            rois = torch.tensor(self.settings["initial_rois"])
            if view != View(view.image, default):
                rois = lay_out_rois(view.tokens - default + len(rois), view.box)
            feed["initial_rois"] = rois[None].numpy()
        elif view != View(view.image, default):
            raise UserError(
                f"This export has {default} visual tokens for every image and takes no regions: export the model again "
                "without --visual_tokens, if its vision encoder is a bootstrapped SparseFormer."
            )
        return self._vision.run(None, feed)[0][0]

    def _embed(self, ids: np.ndarray) -> np.ndarray:
        return self._embedding.run(None, {"input_ids": ids})[0]
