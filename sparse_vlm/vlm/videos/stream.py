"""A video that is still coming in: each frame enters the language model's cache at once, questions come at any time.

The model sees the last N/2 to N frames. The cache begins with the oldest of them, as the prompt of a video does, so an
answer equals that of `answer` on a video of these frames. Frames cannot leave such a cache, because the keys and values
of later frames depend on them and on their positions. So there are two: when the first has N/2 frames, the second one
begins, and every frame enters both; when the first has N, the second one replaces it. Each frame costs the same, and
nothing has to be computed again.
"""

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from threading import Lock
from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature, Cache, DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPooling

from sparse_vlm.errors import UserError
from sparse_vlm.videos.sampling import FPS, MAX_FRAMES
from sparse_vlm.vlm.chat import check_length, check_question, encode_prompt, stream_inputs
from sparse_vlm.vlm.decoding import Decoding
from sparse_vlm.vlm.language.prefixes import CACHE, can_continue, continue_prefixes
from sparse_vlm.vlm.modeling import SparseVLMForConditionalGeneration
from sparse_vlm.vlm.processing import SparseVLMProcessor
from sparse_vlm.vlm.videos.clips import Clip, ClipMetadata
from sparse_vlm.vlm.videos.processor import VideoOptions
from sparse_vlm.vlm.views import View

ADVICE = "Lower max_frames or frame_tokens"


@dataclass
class _Window:
    """Consecutive frames in the language model.

    Attributes:
        ids: token ids of the prompt up to the last frame's.
        frames: number of frames.
        cache: keys and values of these tokens.
    """

    ids: list[int]
    frames: int
    cache: Cache


class VideoStream:
    """The last frames of a video that goes on, and answers about them.

    One thread adds frames, and another may ask meanwhile. Memory and the time of a frame and of an answer do not depend
    on the length of the stream.

    Args:
        model, processor: returned by `load_vlm`.
        options: how frames are shown. `max_frames` is the number N of frames after which the older half leaves; `fps`
            matters only to frames that are added without their time.
        decoding: how the next token is chosen; None: greedily.
        system: the system prompt; None: the chat template's own, if it has one.

    Attributes:
        seen: number of all frames so far.
        time: of the last frame in seconds; None before the first frame.

    Raises:
        UserError: the model cannot have so many visual tokens, its context is too short for N frames, or its language
            model cannot continue a cache.
    """

    def __init__(
        self,
        model: SparseVLMForConditionalGeneration,
        processor: SparseVLMProcessor,
        options: VideoOptions | None = None,
        decoding: Decoding | None = None,
        system: str | None = None,
    ) -> None:
        self.model, self.processor = model, processor
        self.options, self.decoding, self.system = options or VideoOptions(), decoding or Decoding(), system
        sampling = processor.video_processor.sampling(self.options.fps, self.options.max_frames)
        self.max_frames, self.fps = sampling.max_frames or MAX_FRAMES, sampling.fps or FPS
        self._check()
        self._lock = Lock()  # held while the windows change, or until an answer begins
        self.clear()

    def _check(self) -> None:
        """Check that the model suits the stream, and learn the number of tokens of a frame."""
        kind = self.model.config.get_text_config().model_type
        if not can_continue(self.model.config):
            raise UserError(
                f"A language model of type {kind} cannot read a stream, since it cannot continue a cache by several "
                "tokens. Use a model with attention alone, or give the video as a file."
            )
        if self.max_frames < 2:
            raise UserError(f"A stream needs max_frames of at least 2, got {self.max_frames}. Ask about an image.")
        first, further = self._prompt([0.0], "?"), self._further_ids(0.0, 1 / self.fps)
        self.frame_tokens = first.count(self.processor.image_token_id)
        self.model.model.check_views([View(0, self.frame_tokens)])
        total = len(first) + (self.max_frames - 1) * len(further)
        check_length(self.model, total, 1, asked=f"A stream of {self.max_frames} frames, a question", advice=ADVICE)

    def clear(self) -> None:
        """Forget all frames."""
        with self._lock:
            self._window: _Window | None = None
            self._next: _Window | None = None
            self.seen = 0
            self.time: float | None = None

    @property
    def frames(self) -> int:
        """Number of frames that the model sees now."""
        window = self._window
        return 0 if window is None else window.frames

    @property
    def cache_bytes(self) -> int:
        """Memory of all keys and values."""
        caches = [window.cache for window in (self._window, self._next) if window is not None]
        layers: list[Any] = [layer for cache in caches for layer in cache.layers]
        return sum(part.nbytes for layer in layers for part in (layer.keys, layer.values))

    @torch.no_grad()
    def add(self, frame: Any, time: float | None = None) -> None:
        """Add the next frame.

        Args:
            frame: an image as the processor takes it: PIL, an array or a tensor; or a Clip of one frame.
            time: seconds since the stream began; None: 1 / fps after the last frame.

        Raises:
            UserError: the time is not after the last frame's.
        """
        clip = self.processor.video_processor.read([frame], do_sample_frames=False)
        pixels = clip.pixel_values.to(self.model.device, self.model.dtype)
        features = self.model.model.get_video_features(pixels, frame_tokens=self.frame_tokens).pooler_output
        assert features is not None
        with self._lock:
            before = self.time
            if time is None:
                time = 0.0 if before is None else before + 1 / self.fps
            if before is not None and time <= before:
                raise UserError(f"A frame at {time:g} s cannot follow one at {before:g} s: add frames in order.")
            self._append(features[0], before, time)
            self.seen, self.time = self.seen + 1, time

    def _append(self, features: Tensor, before: float | None, time: float) -> None:
        """Add a frame to the windows; see the top of this file."""
        kept = self.max_frames // 2
        if self._window is not None and self._window.frames == self.max_frames:
            self._window, self._next = self._next, None
        if self._window is not None and self._window.frames >= self.max_frames - kept:
            self._next = self._extended(self._next, features, before, time)
        self._window = self._extended(self._window, features, before, time)

    def _extended(self, window: _Window | None, features: Tensor, before: float | None, time: float) -> _Window:
        """Add a frame to a window; None begins one."""
        if window is None or before is None:
            window = _Window([], 0, DynamicCache(config=self.model.config))
            ids = self._until_image(self._prompt([time], "?"))
        else:
            ids = self._further_ids(before, time)
        cache: dict[str, Any] = {CACHE: window.cache}
        self.model.model(
            input_ids=torch.tensor([ids], device=self.model.device),
            mm_encoder_outputs={"image": BaseModelOutputWithPooling(pooler_output=[features])},  # type: ignore[arg-type]
            use_cache=True,
            **cache,
        )
        return _Window(window.ids + ids, window.frames + 1, window.cache)

    def ask(self, question: str, max_new_tokens: int = 256) -> Generator[str]:
        """Yield the answer about the last frames, in non-empty pieces.

        Question and answer leave no trace in the stream. Frames that are added meanwhile wait for the first piece and
        do not change this answer. Closing the iterator ends the answer.

        Args:
            question: plain text.
            max_new_tokens: maximum length of the answer.

        Raises:
            UserError: the question is empty, there is no frame yet, or question and answer do not fit into the model's
                context.
        """
        check_question(question)
        if max_new_tokens < 1:
            raise UserError(f"--max_new_tokens must be 1 or more, got {max_new_tokens}.")
        with self._lock:
            window, time = self._window, self.time
            if window is None or time is None:
                raise UserError("The stream has no frame yet: ask when the first one has come.")
            prompt = self._prompt([time], question)
            ids = window.ids + prompt[len(self._until_image(prompt)) :]
            asked = f"A stream of {window.frames} frames, the question"
            check_length(self.model, len(ids), max_new_tokens, asked=asked, advice=ADVICE)
            cache = continue_prefixes(window.cache, torch.zeros(self.decoding.beams, dtype=torch.long))
            inputs = BatchFeature({"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids))})
            settings = {**self.decoding.settings, CACHE: cache}
            pieces = stream_inputs(self.model, self.processor, inputs, max_new_tokens, settings)
            first = next(pieces, "")
        with closing(pieces):
            yield from filter(None, chain([first], pieces))

    def _prompt(self, times: list[float], question: str) -> list[int]:
        """Return the token ids of a question about a video whose frames have these times."""
        frames = Clip(
            torch.zeros(len(times), 3, 1, 1), ClipMetadata(len(times), times=times)
        )  # its pixels do not matter
        inputs = encode_prompt(self.processor, None, question, self.system, videos=[frames], video_options=self.options)
        return inputs["input_ids"][0].tolist()

    def _until_image(self, ids: list[int]) -> list[int]:
        """Return the part of a prompt that ends with its last visual token."""
        return ids[: len(ids) - ids[::-1].index(self.processor.image_token_id)]

    def _further_ids(self, before: float, time: float) -> list[int]:
        """Return the token ids that a frame adds after the one `before`."""
        one, two = (self._until_image(self._prompt(times, "?")) for times in ([before], [before, time]))
        return two[len(one) :]
