"""Answers to many questions about few images. The prefix of each image is computed once.

All prompts share their beginning up to the image: the head of the chat template and the visual tokens. The model
processes this prefix once per image. The questions about the image continue its keys and values (see
language/prefixes.py) by transformers' own `generate`, in large batches sorted by length, which lose the rows of
complete answers now and then. If padding between prefix and rest would change an answer, each batch has prompts of
equal length. A model that cannot be batched is asked one question at a time.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import groupby, takewhile
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import Cache, DynamicCache

from sparse_vlm.errors import UserError
from sparse_vlm.vlm.chat import answer, check_length, encode_prompt
from sparse_vlm.vlm.decoding import Decoding, counts_from_prompt
from sparse_vlm.vlm.language.positions import most_positions
from sparse_vlm.vlm.language.prefixes import CACHE, can_continue, continue_prefixes
from sparse_vlm.vlm.modeling import SparseVLMForConditionalGeneration
from sparse_vlm.vlm.processing import SparseVLMProcessor
from sparse_vlm.vlm.views import View, pack_views

# encodes prompts without their images, since all images take the same number of tokens
ANY_IMAGE = Image.new("RGB", (8, 8))
CACHED_PROMPTS = 4096  # benchmarks repeat their questions
FIRST_TOKENS = 2  # after so many tokens a batch loses its complete answers, e.g. "yes", for the first time
logger = logging.getLogger(__name__)


class Answerer:
    """Answers questions with one model. The answers equal those of `sparse_vlm.vlm.chat.answer`.

    Args:
        model, processor: returned by `load_vlm`.
        max_new_tokens: maximum length of an answer.
        batch_rows: maximum number of questions per batch.
        decoding: how the next token is chosen; None: greedily.
        system: the system prompt; None: the chat template's own, if it has one.
        visual_tokens: number of visual tokens of each image; None: the model's own.
    """

    def __init__(
        self,
        model: SparseVLMForConditionalGeneration,
        processor: SparseVLMProcessor,
        max_new_tokens: int,
        batch_rows: int = 96,
        *,
        decoding: Decoding | None = None,
        system: str | None = None,
        visual_tokens: int | None = None,
    ) -> None:
        if batch_rows < 1:
            raise UserError(f"The number of questions per batch must be at least 1, got {batch_rows}.")
        if visual_tokens is not None:
            model.model.check_views([View(0, visual_tokens)])
        self.model, self.processor = model, processor
        self.max_new_tokens, self.batch_rows = max_new_tokens, batch_rows
        self.decoding, self.system = decoding or Decoding(), system
        self.visual_tokens = visual_tokens
        self._warned = False
        self._prompt = lru_cache(CACHED_PROMPTS)(self._encode)

    @property
    def tokens_per_image(self) -> int:
        """Number of visual tokens of each image."""
        return self.model.config.image_seq_length if self.visual_tokens is None else self.visual_tokens

    @torch.inference_mode()
    def answer(
        self, images: Iterable[Image.Image] | None, questions: Sequence[tuple[int, str]]
    ) -> Iterator[list[tuple[int, str]]]:
        """Answer questions batch by batch, in any order.

        Args:
            images: the images, consumed one at a time; None: the questions have no image.
            questions: (index into `images`, text); without images the index is 0.

        Yields:
            The (index into `questions`, answer) pairs of one batch.
        """
        prompts = [self._prompt(images is not None, text) for _, text in questions]
        for prompt, (_, text) in zip(prompts, questions, strict=True):
            self._check_tokens(len(prompt), text)
        if self._needs_single_questions():
            yield from self._one_by_one(images, questions)
            return
        shared = self._shared_length(prompts)
        prefix = self._prefill(prompts[0][:shared], self._inputs_of(images))
        yield from self._continue(prefix, prompts, shared, [place for place, _ in questions])

    def _continue(
        self, prefix: Cache, prompts: Sequence[list[int]], shared: int, places: Sequence[int]
    ) -> Iterator[list[tuple[int, str]]]:
        """Yield (index of the prompt, answer) pairs; `places` are the rows of `prefix` that the prompts continue."""
        for batch in self._batches(prompts):
            rows = torch.tensor([places[index] for index in batch], device=self.model.device)
            cache = continue_prefixes(prefix, rows.repeat_interleave(self.decoding.beams))
            yield list(zip(batch, self._generate([prompts[index] for index in batch], shared, cache), strict=True))

    def check_length(self, with_image: bool, text: str) -> None:
        """Check that a prompt and its answer fit into the model. Call this before long work."""
        if self._may_be_too_long(len(self._prompt(with_image, "?")), text):
            self._check_tokens(len(self._encode(with_image, text)), text)

    def _may_be_too_long(self, around: int, text: str) -> bool:
        """Return whether a prompt of `around` tokens beside the question has to be tokenized to check its length.

        Most need not be, because a byte gives at most one token.
        """
        most = most_positions(self.model.config.get_text_config())
        return most is not None and around + len(text.encode()) + self.max_new_tokens > most

    def _check_tokens(self, prompt: int, text: str) -> None:
        """Raise UserError if a prompt of `prompt` tokens and its answer exceed the model's positions."""
        advice = "Shorten the question" + " or ask for fewer visual tokens" * (self.visual_tokens is not None)
        check_length(self.model, prompt, self.max_new_tokens, asked=f"The question {text!r:.80}", advice=advice)

    def _needs_single_questions(self) -> bool:
        """Return whether batches would change the answers, and log it the first time."""
        if can_continue(self.model.config):
            return False
        if not self._warned:
            kind = self.model.config.get_text_config().model_type
            logger.warning(
                "Batches would change the answers of a language model of type %s: it is asked one question at a time.",
                kind,
            )
            self._warned = True
        return True

    def _one_by_one(
        self, images: Iterable[Image.Image] | None, questions: Sequence[tuple[int, str]]
    ) -> Iterator[list[tuple[int, str]]]:
        members: dict[int, list[int]] = {}
        for index, (place, _) in enumerate(questions):
            members.setdefault(place, []).append(index)
        for place, image in enumerate([None] if images is None else images):
            for index in members.get(place, []):
                yield [(index, self._answer_alone(image, questions[index][1]))]

    def _answer_alone(self, image: Image.Image | None, text: str) -> str:
        return answer(
            self.model,
            self.processor,
            image,
            text,
            self.max_new_tokens,
            decoding=self.decoding,
            system=self.system,
            visual_tokens=self.visual_tokens,
        )

    def _batches(self, prompts: Sequence[list[int]]) -> Iterator[list[int]]:
        """Yield indices of prompts of similar length, or of equal length if padding would change the answers."""
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        groups = [order]
        if self._padding_matters(len(prompts[order[-1]]) + self.max_new_tokens):
            groups = [list(same) for _, same in groupby(order, key=lambda index: len(prompts[index]))]
        for group in groups:
            for start in range(0, len(group), self.batch_rows):
                yield group[start : start + self.batch_rows]

    def _padding_matters(self, tokens: int) -> bool:
        """Return whether padding in a row of `tokens` tokens takes space in a sliding attention window."""
        windows = [getattr(layer, "sliding_window", None) for layer in DynamicCache(config=self.model.config).layers]
        return any(window < tokens for window in windows if window)

    def _encode(self, with_image: bool, text: str) -> list[int]:
        """Return the token ids of a complete prompt."""
        image = ANY_IMAGE if with_image else None
        inputs = encode_prompt(self.processor, image, text, self.system, visual_tokens=self.visual_tokens)
        return inputs["input_ids"][0].tolist()

    def _shared_length(self, prompts: Sequence[list[int]]) -> int:
        """Return the number of tokens that all prompts share at their beginning. At least one token of each remains."""
        columns = zip(*(prompt[:-1] for prompt in prompts), strict=False)  # ends with the shortest
        shared = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
        if any(self.processor.image_token_id in prompt[shared:] for prompt in prompts):
            raise UserError("The chat template must put the image before the text of the question, but it does not.")
        return shared

    def _inputs_of(self, images: Iterable[Image.Image] | None) -> dict[str, Tensor]:
        """Return the model's inputs of the images."""
        if images is None:
            return {}
        pixels = torch.cat([self._preprocess(image) for image in images]).to(self.model.device, self.model.dtype)
        if self.visual_tokens is None:
            return {"pixel_values": pixels}
        views = pack_views([View(image, self.visual_tokens) for image in range(len(pixels))])
        return {"pixel_values": pixels, "views": views}

    def _prefill(self, prefix: list[int], visual: Mapping[str, Tensor]) -> Cache:
        """Compute keys and values of the shared beginning, one row per image, or one row without images."""
        if not prefix:  # no image, and a template without a head
            return DynamicCache(config=self.model.config)
        rows = len(visual["pixel_values"]) if "pixel_values" in visual else 1
        input_ids = torch.tensor([prefix], device=self.model.device).repeat(rows, 1)
        out = self.model(input_ids=input_ids, **visual, use_cache=True, logits_to_keep=1)
        return out[CACHE]

    def _preprocess(self, image: Image.Image) -> Tensor:
        return self.processor.image_processor(images=[image], return_tensors="pt")["pixel_values"]

    def _generate(self, prompts: Sequence[list[int]], shared: int, cache: Cache) -> list[str]:
        """Answer the prompts of one batch, with padding between the shared beginning and the rest."""
        tokenizer, device = self.processor.tokenizer, self.model.device
        width = max(map(len, prompts))
        rows, seen = [], []
        for prompt in prompts:
            gap, rest = width - len(prompt), len(prompt) - shared
            rows.append(prompt[:shared] + [tokenizer.pad_token_id] * gap + prompt[shared:])
            seen.append([1] * shared + [0] * gap + [1] * rest)
        input_ids, attention_mask = torch.tensor(rows, device=device), torch.tensor(seen, device=device)
        generator: Any = self.model  # transformers' annotations of generate do not fit its own Llava classes
        unanswered, tokens = list(range(len(prompts))), [torch.empty(0)] * len(prompts)
        for count in self._steps():
            input_ids = generator.generate(
                input_ids=input_ids,
                attention_mask=attention_mask,
                max_new_tokens=count,
                pad_token_id=tokenizer.pad_token_id,
                **{CACHE: cache},
                **self.decoding.settings,
            )
            generated = input_ids[:, width:]
            for place, row in zip(unanswered, generated, strict=True):
                tokens[place] = row
            incomplete = self._incomplete(generated)
            if not incomplete:
                break
            if len(incomplete) < len(unanswered):
                unanswered = [unanswered[row] for row in incomplete]
                kept = torch.tensor(incomplete, device=device)
                input_ids, attention_mask = input_ids[kept], attention_mask[kept]
                cache.batch_select_indices(kept)
            attention_mask = F.pad(attention_mask, (0, input_ids.shape[1] - attention_mask.shape[1]), value=1)
        return [answer.strip() for answer in tokenizer.batch_decode(tokens, skip_special_tokens=True)]

    def _steps(self) -> Iterator[int]:
        """Yield the numbers of tokens after which a batch loses the rows of complete answers, each twice the last."""
        left, count = self.max_new_tokens, FIRST_TOKENS
        if self.decoding.beams > 1 or counts_from_prompt(self.model.generation_config):
            count = left
        while left > 0:
            yield min(count, left)
            left, count = left - count, 2 * count

    def _incomplete(self, generated: Tensor) -> list[int]:
        """Return the rows of int64[rows, tokens] that hold no token that ends an answer."""
        ends = self.model.generation_config.eos_token_id
        known = torch.tensor([] if ends is None else ends, dtype=generated.dtype, device=generated.device)
        return torch.isin(generated, known).logical_not().all(1).nonzero()[:, 0].tolist()
