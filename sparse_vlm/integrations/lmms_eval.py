"""Model directories in lmms-eval: `lmms-eval --model sparse_vlm --model_args pretrained=DIR --tasks …`.

lmms-eval finds `manifest` through the entry point "sparse_vlm" of the group "lmms_eval.models".
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from PIL import Image
from tqdm import tqdm

from sparse_vlm.devices import choose_device, choose_dtype
from sparse_vlm.errors import UserError
from sparse_vlm.vlm.answering import Answerer
from sparse_vlm.vlm.chat import answer
from sparse_vlm.vlm.language.control_tokens import IMAGE_TOKEN
from sparse_vlm.vlm.loading import load_vlm
from sparse_vlm.vlm.views import check_count

MAX_NEW_TOKENS = 1024  # for tasks that do not set a limit


def manifest() -> ModelManifest:
    """Return the manifest of the model, for lmms-eval's registry."""
    return ModelManifest(model_id="sparse_vlm", simple_class_path=f"{__name__}.SparseVLM")


class SparseVLM(lmms):
    """A model directory that answers greedily. `accelerate launch` distributes the work over several devices.

    Args:
        pretrained: model directory.
        batch_size: number of questions per generation batch.
        device: argument of `choose_device`; if None, or with several processes, accelerate chooses.
        dtype: argument of `choose_dtype`.
        max_batch_size: must be None; lmms-eval passes it to every model.
        visual_tokens: number of visual tokens of each image; None: the model's own.
    """

    def __init__(
        self,
        pretrained: str,
        batch_size: int | str = 1,
        device: str | None = None,
        dtype: str = "auto",
        max_batch_size: int | None = None,
        visual_tokens: int | None = None,
    ) -> None:
        super().__init__()
        if not str(batch_size).isdigit() or max_batch_size is not None:
            raise UserError(f"The batch size must be a number, without --max_batch_size; got {batch_size!r}.")
        if visual_tokens is not None:
            check_count(visual_tokens)
        self.accelerator = Accelerator()
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        found = self.accelerator.device
        self.device = found if device is None or self._world_size > 1 else choose_device(device)
        self.batch_size, self.visual_tokens = int(batch_size), visual_tokens
        self._model, self._processor = load_vlm(Path(pretrained), choose_dtype(dtype, self.device))
        self._model.to(self.device)  # type: ignore[arg-type]  # transformers' own annotation of `to` fits no device

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """Answer the requests. Each answer ends before the first of its stop strings."""
        by_limit: dict[int, list[int]] = defaultdict(list)
        for index, request in enumerate(requests):
            by_limit[_max_new_tokens(request)].append(index)
        answers: dict[int, str] = {}
        with tqdm(total=len(requests), disable=self.rank != 0, desc="sparse_vlm", unit="question") as progress:
            for limit, members in by_limit.items():
                for start in range(0, len(members), self.batch_size):
                    batch = members[start : start + self.batch_size]
                    texts = self._answer([requests[index] for index in batch], limit)
                    answers |= {index: _cut(text, requests[index]) for index, text in zip(batch, texts, strict=True)}
                    progress.update(len(batch))
        return [answers[index] for index in range(len(requests))]

    def _answer(self, requests: Sequence[Instance], limit: int) -> list[str]:
        """Answer a batch: requests with one image, or with none, together; requests with several images one by one."""
        prompts = [request.args[0].replace(IMAGE_TOKEN, "").strip() for request in requests]
        images_of = [self._images(request) for request in requests]
        texts: dict[int, str] = {}
        for count in (0, 1):
            rows = [row for row, images in enumerate(images_of) if len(images) == count]
            questions = [(place * count, prompts[row]) for place, row in enumerate(rows)]
            images = [image for row in rows for image in images_of[row]]
            answerer = Answerer(self._model, self._processor, limit, self.batch_size, visual_tokens=self.visual_tokens)
            for batch in answerer.answer(images or None, questions) if rows else ():
                texts |= {rows[place]: text for place, text in batch}
        for row in range(len(requests)):
            if row not in texts:
                texts[row] = answer(
                    self._model,
                    self._processor,
                    images_of[row],
                    prompts[row],
                    limit,
                    visual_tokens=self.visual_tokens,
                )
        return [texts[row] for row in range(len(requests))]

    def _images(self, request: Instance) -> list[Image.Image]:
        _, _, doc_to_visual, doc_id, task, split = request.args
        visuals = list(doc_to_visual(self.task_dict[task][split][doc_id]) or [])
        if not all(isinstance(visual, Image.Image) for visual in visuals):
            raise UserError(f"The task {task} has inputs that are not images, but sparse_vlm only supports images.")
        return visuals

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Not supported."""
        raise NotImplementedError("sparse_vlm only generates answers: choose a task with output_type generate_until.")

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        """Not supported."""
        raise NotImplementedError(
            "sparse_vlm only answers in one round: choose a task with output_type generate_until."
        )


def _max_new_tokens(request: Instance) -> int:
    """Maximum length of an answer in tokens; raise a UserError unless the task's options mean greedy generation."""
    options: dict[str, Any] = request.args[1]
    sampled = options.get("do_sample", True) and float(options.get("temperature") or 0) > 0
    if sampled or int(options.get("num_beams") or 1) > 1:
        raise UserError(
            f"The task {request.args[4]} sets {options}, but sparse_vlm answers greedily: "
            "add --gen_kwargs temperature=0,num_beams=1."
        )
    return int(options.get("max_new_tokens", MAX_NEW_TOKENS))


def _cut(text: str, request: Instance) -> str:
    stops = request.args[1].get("until") or []
    for stop in [stops] if isinstance(stops, str) else stops:
        text = text.split(stop)[0] if stop else text
    return text.strip()
