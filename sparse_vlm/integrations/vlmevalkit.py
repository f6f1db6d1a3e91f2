"""Model directories in VLMEvalKit (open-compass): the class `SparseVLM`, and a launcher that needs no change of it.

    python -m sparse_vlm.integrations.vlmevalkit run.py --config CONFIG.json

runs VLMEvalKit's run.py, or a module such as vlmeval.run. Before, it adds the class to `vlmeval.vlm`, where a
configuration finds it: {"model": {"NAME": {"class": "SparseVLM", "model_path": "DIR"}}, "data": …}.
"""

import math
import re
import runpy
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from vlmeval.vlm.base import BaseModel

from sparse_vlm.data.instructions import OPTION_LETTER, OPTION_LETTER_CN, SHORT_ANSWER
from sparse_vlm.devices import choose_device, choose_dtype
from sparse_vlm.errors import UserError, exit_with_sentence
from sparse_vlm.image_files import open_image
from sparse_vlm.vlm.chat import answer_inputs, encode_messages
from sparse_vlm.vlm.loading import load_vlm
from sparse_vlm.vlm.views import check_count

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
CHINESE = re.compile("[\u4e00-\u9fff]")
ROLES = ("system", "user", "assistant")
USAGE = "python -m sparse_vlm.integrations.vlmevalkit SCRIPT ARGS…, e.g. run.py --config CONFIG.json"

# A message of VLMEvalKit: parts {"type": "text" or "image", "value": the text or a path}, perhaps with a "role".
Message = Sequence[Mapping[str, Any]]


class SparseVLM(BaseModel):
    """A model directory that answers greedily.

    Args:
        model_path: model directory.
        device: argument of `choose_device`.
        dtype: argument of `choose_dtype`.
        max_new_tokens: maximum length of an answer.
        visual_tokens: number of visual tokens of each image; None: the model's own.
        llava_prompts: ask multiple-choice questions with LLaVA-1.5's instruction, as `eval.generate` does; False: with
            VLMEvalKit's own. It asks other questions with LLaVA's instructions already.
    """

    INSTALL_REQ = False
    INTERLEAVE = True  # images and text in any order

    def __init__(
        self,
        model_path: str,
        device: str = "auto",
        dtype: str = "auto",
        max_new_tokens: int = 512,
        visual_tokens: int | None = None,
        llava_prompts: bool = True,
    ) -> None:
        super().__init__()
        if visual_tokens is not None:
            check_count(visual_tokens)
        if max_new_tokens < 1:
            raise UserError(f"max_new_tokens must be 1 or more, got {max_new_tokens}.")
        self.max_new_tokens, self.visual_tokens, self.llava_prompts = max_new_tokens, visual_tokens, llava_prompts
        place = choose_device(device)
        self._model, self._processor = load_vlm(Path(model_path), choose_dtype(dtype, place))
        self._model.to(place)  # type: ignore[arg-type]  # transformers' own annotation of `to` fits no device

    def use_custom_prompt(self, dataset: str | None) -> bool:
        """Return whether `build_prompt` asks the questions of a data set."""
        from vlmeval.dataset import DATASET_TYPE

        return self.llava_prompts and dataset is not None and DATASET_TYPE(dataset) == "MCQ"

    def build_prompt(self, line: Mapping[str, Any], dataset: str | None = None) -> list[dict[str, str]]:
        """Ask a multiple-choice question as LLaVA-1.5 does: hint, question, options and instruction.

        Args:
            line: row of the data set's table.
            dataset: its name.
        """
        cells = {name: str(line[name]) for name in ("hint", "question", *LETTERS) if _has(line, name)}
        options = [f"{letter}. {cells[letter]}" for letter in LETTERS if letter in cells]
        lines = [*(cells[name] for name in ("hint", "question") if name in cells), *options]
        chinese = CHINESE.search("".join(lines)) is not None
        instruction = (OPTION_LETTER_CN if chinese else OPTION_LETTER) if options else SHORT_ANSWER
        images = self.dump_image(line, dataset)
        paths = [images] if isinstance(images, str) else list(images)
        parts = [{"type": "image", "value": path} for path in paths]
        return [*parts, {"type": "text", "value": "\n".join([*lines, instruction])}]

    def generate_inner(self, message: Message, dataset: str | None = None) -> str:
        """Answer a message, whose parts may have roles; without one they are the user's."""
        turns: list[dict[str, Any]] = []
        for part in message:
            role = part.get("role", "user")
            if not turns or turns[-1]["role"] != role:
                turns.append({"role": role, "content": []})
            turns[-1]["content"].append(part)
        return self.chat_inner(turns, dataset)

    @torch.inference_mode()
    def chat_inner(self, message: Sequence[Mapping[str, Any]], dataset: str | None = None) -> str:
        """Continue a conversation of turns {"role", "content": parts} whose last one is the user's."""
        if not message or message[-1]["role"] != "user":
            raise UserError(f"{_of(dataset)} has a conversation that does not end with the user's turn.")
        images: list[Image.Image] = []
        turns = [
            {
                "role": _role(turn["role"], dataset),
                "content": [_part(part, images, dataset) for part in turn["content"]],
            }
            for turn in message
        ]
        inputs = encode_messages(self._processor, turns, images, self.visual_tokens)
        return answer_inputs(self._model, self._processor, inputs, self.max_new_tokens)


def _has(line: Mapping[str, Any], name: str) -> bool:
    """Return whether a row has a cell; pandas reads an empty one as NaN."""
    value = line.get(name)
    return value is not None and not (isinstance(value, float) and math.isnan(value))


def _role(name: str, dataset: str | None) -> str:
    if name not in ROLES:
        raise UserError(f"{_of(dataset)} has a turn of {name!r}, but sparse_vlm knows {', '.join(ROLES)}.")
    return name


def _part(part: Mapping[str, Any], images: list[Image.Image], dataset: str | None) -> dict[str, str]:
    """Return a part in transformers' form; add its image to `images`."""
    if part["type"] == "text":
        return {"type": "text", "text": part["value"]}
    if part["type"] != "image":
        raise UserError(
            f"{_of(dataset)} has a part of type {part['type']!r}, but sparse_vlm takes text and images. Evaluate "
            "videos as frames: without VIDEO_LLM, VLMEvalKit extracts them itself."
        )
    images.append(open_image(part["value"]))
    return {"type": "image"}


def _of(dataset: str | None) -> str:
    return f"The data set {dataset}" if dataset else "The message"


def register() -> None:
    """Add the class to `vlmeval.vlm`, where VLMEvalKit looks for the classes of a configuration."""
    import vlmeval.vlm

    vlmeval.vlm.SparseVLM = SparseVLM


def run(words: Sequence[str]) -> None:
    """Run a script of VLMEvalKit, or a module, with its arguments after `register`."""
    if not words or words[0].startswith("-"):
        raise UserError(f"The script is missing. Usage: {USAGE}")
    register()
    sys.argv = list(words)
    if Path(words[0]).is_file():
        runpy.run_path(words[0], run_name="__main__")
    elif words[0].endswith(".py"):
        raise UserError(f"There is no script {words[0]}. Run this in VLMEvalKit's folder, or give the whole path.")
    else:
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    # registers the class of the module that other programs import, not that of __main__
    from sparse_vlm.integrations.vlmevalkit import run as run_script

    sys.exit(exit_with_sentence(lambda: run_script(sys.argv[1:])))
