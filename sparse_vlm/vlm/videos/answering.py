"""Answers to many questions about videos. The prefix of each video, all of its frames, is computed once."""

from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from typing import Any

import torch
from transformers import BatchFeature

from sparse_vlm.videos.sampling import FrameSampling
from sparse_vlm.vlm.answering import Answerer
from sparse_vlm.vlm.chat import answer_inputs, check_length, encode_prompt
from sparse_vlm.vlm.modeling import SparseVLMForConditionalGeneration
from sparse_vlm.vlm.processing import SparseVLMProcessor
from sparse_vlm.vlm.videos.clips import Clip, ClipMetadata
from sparse_vlm.vlm.videos.processor import VideoOptions
from sparse_vlm.vlm.views import View


class VideoAnswerer(Answerer):
    """Answers questions about videos with one model. The answers equal those of `sparse_vlm.vlm.chat.answer`.

    Args:
        model, processor, max_new_tokens, batch_rows, settings: see `Answerer`.
        video_options: how the videos are shown; None: as the processor's settings say.
    """

    def __init__(
        self,
        model: SparseVLMForConditionalGeneration,
        processor: SparseVLMProcessor,
        max_new_tokens: int,
        batch_rows: int = 96,
        *,
        video_options: VideoOptions | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(model, processor, max_new_tokens, batch_rows, **settings)
        self.video_options = video_options or VideoOptions()
        self._around = lru_cache(partial(self._tokens, text="?"))
        if self.video_options.frame_tokens is not None:
            model.model.check_views([View(0, self.video_options.frame_tokens)])

    @property
    def tokens_per_frame(self) -> int:
        """Number of visual tokens of each frame."""
        return self.processor.tokens_per_frame(self.video_options.frame_tokens)

    @property
    def sampling(self) -> FrameSampling:
        """Which frames of a video are shown."""
        return self.processor.video_processor.sampling(**self.video_options.sampling)

    def read(self, video: Any, **options: Any) -> Clip:
        """Read the frames of a video that are shown; see `SparseFormerVideoProcessor.read`."""
        return self.processor.video_processor.read(video, **self.video_options.sampling, **options)

    @torch.inference_mode()
    def answer_video(self, clip: Clip, questions: Sequence[str]) -> Iterator[list[tuple[int, str]]]:
        """Answer questions about one video batch by batch, in any order.

        Args:
            clip: returned by `read`.
            questions: texts.

        Yields:
            The (index into `questions`, answer) pairs of one batch.
        """
        outline = Clip(clip.pixel_values[:, :0], clip.metadata)  # the same prompts, without copies of the pixels
        prompts = [self._encode_video(outline, text)["input_ids"][0].tolist() for text in questions]
        for prompt, text in zip(prompts, questions, strict=True):
            self._check_video(len(prompt), text, len(clip))
        if self._needs_single_questions():
            for index, text in enumerate(questions):
                inputs = self._encode_video(clip, text)
                words = answer_inputs(self.model, self.processor, inputs, self.max_new_tokens, self.decoding)
                yield [(index, words)]
            return
        inputs = self._encode_video(clip, questions[0])
        visual = {name: inputs[name] for name in ("pixel_values_videos", "video_frames", "views")}
        visual["pixel_values_videos"] = visual["pixel_values_videos"].to(self.model.device, self.model.dtype)
        shared = self._shared_length(prompts)
        prefix = self._prefill(prompts[0][:shared], visual)
        yield from self._continue(prefix, prompts, shared, [0] * len(questions))

    def check_video_length(self, frames: int, text: str) -> None:
        """Check that a question about a video of so many frames fits into the model. Call this before long work."""
        if self._may_be_too_long(self._around(frames), text):
            self._check_video(self._tokens(frames, text), text, frames)

    def _tokens(self, frames: int, text: str) -> int:
        """Return the length of a prompt about frames a second apart."""
        times = [float(second) for second in range(frames)]
        clip = Clip(torch.empty(frames, 0), ClipMetadata(total_num_frames=frames, times=times))
        return self._encode_video(clip, text)["input_ids"].shape[1]

    def _encode_video(self, clip: Clip, text: str) -> BatchFeature:
        options = self.video_options
        return encode_prompt(self.processor, None, text, self.system, videos=[clip], video_options=options)

    def _check_video(self, prompt: int, text: str, frames: int) -> None:
        """Raise UserError if a prompt of `prompt` tokens and its answer exceed the model's positions."""
        asked, advice = f"The question {text!r:.80} and {frames} frames", "Lower max_frames, fps or frame_tokens"
        check_length(self.model, prompt, self.max_new_tokens, asked=asked, advice=advice)
