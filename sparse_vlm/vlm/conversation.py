"""A conversation of several turns about images and videos. The prompt of each answer is the whole conversation."""

from collections.abc import Generator
from contextlib import closing
from typing import Any

from PIL import Image

from sparse_vlm.errors import UserError
from sparse_vlm.vlm.chat import check_inputs, check_question, encode_messages, stream_inputs, user_message
from sparse_vlm.vlm.decoding import Decoding
from sparse_vlm.vlm.modeling import SparseVLMForConditionalGeneration
from sparse_vlm.vlm.processing import SparseVLMProcessor
from sparse_vlm.vlm.videos.clips import Clip
from sparse_vlm.vlm.videos.processor import VideoOptions
from sparse_vlm.vlm.views import Box, View


class Conversation:
    """The turns, images and videos of a conversation.

    Args:
        model, processor: returned by `load_vlm`.
        decoding: greedy or sampled; None: greedy. Beam search cannot be streamed.
        visual_tokens: number of visual tokens of each image; None: the model's own.
        video_options: how videos are shown; None: as the processor's settings say.
    """

    def __init__(
        self,
        model: SparseVLMForConditionalGeneration,
        processor: SparseVLMProcessor,
        decoding: Decoding | None = None,
        visual_tokens: int | None = None,
        video_options: VideoOptions | None = None,
    ) -> None:
        self.video_options = video_options or VideoOptions()
        for tokens in (visual_tokens, self.video_options.frame_tokens):
            if tokens is not None:
                model.model.check_views([View(0, tokens)])
        self.model, self.processor = model, processor
        self.decoding, self.visual_tokens = decoding or Decoding(), visual_tokens
        self.messages: list[dict[str, Any]] = []
        self.images: list[Image.Image] = []
        self.videos: list[Clip] = []
        self._waiting: list[Image.Image] = []
        self._clips: list[Clip] = []
        self._regions: list[Box] = []

    def show(self, image: Image.Image) -> None:
        """Attach an image to the next question. Several images may be attached."""
        if self._regions:
            raise UserError("A region of the previous image waits for its question: ask it before the next image.")
        self._waiting.append(image)

    def watch(self, video: Any) -> None:
        """Attach a video to the next question, after its images. Several videos may be attached.

        Args:
            video: see `read_clip`. It is read once, for all answers.

        Raises:
            UserError: it cannot be read.
        """
        self._clips.append(self.processor.video_processor.read(video, **self.video_options.sampling))

    def look_at(self, box: Box) -> None:
        """Attach a region of the last image to the next question. Several regions may be attached.

        Args:
            box: (x1, y1, x2, y2), [0, 1] from edge to edge of the image.

        Raises:
            UserError: there is no image, or a video came after it, the model does not see this part of it, or the model
                takes no regions.
        """
        images = [*self.images, *self._waiting]
        if not images:
            raise UserError("A region is a part of an image, but the conversation has none: attach an image first.")
        parts = [part["type"] for turn in self.messages if turn["role"] == "user" for part in turn["content"]]
        if not self._waiting and [kind for kind in parts if kind in ("image", "video")][-1] == "video":
            raise UserError("A region is a part of the image before it, but a video came last: attach the image again.")
        image_processor = self.processor.image_processor
        inside = image_processor.model_box(box, image_processor.process_image(images[-1]).size)
        self.model.model.check_views([View(0, self.processor.region_tokens, inside)])
        self._regions.append(box)

    def clear(self) -> None:
        """Forget all turns, images, videos and regions."""
        self.messages, self.images, self.videos = [], [], []
        self._waiting, self._clips, self._regions = [], [], []

    def ask(self, question: str, max_new_tokens: int = 256) -> Generator[str]:
        """Yield the answer in pieces.

        Question and answer become part of the conversation when the answer ends or the iterator is closed. In the
        latter case the answer is kept up to that point; a question without any answer is forgotten.

        Args:
            question: plain text.
            max_new_tokens: maximum length of the answer.
        """
        check_question(question)
        if max_new_tokens < 1:
            raise UserError(f"--max_new_tokens must be 1 or more, got {max_new_tokens}.")
        turn = user_message(question, len(self._waiting), self._regions, len(self._clips))
        messages = [*self.messages, turn]
        images, videos = [*self.images, *self._waiting], [*self.videos, *self._clips]
        inputs = encode_messages(
            self.processor, messages, images, self.visual_tokens, videos, video_options=self.video_options
        )
        check_inputs(self.model, inputs, max_new_tokens)
        pieces: list[str] = []
        try:
            with closing(
                stream_inputs(self.model, self.processor, inputs, max_new_tokens, self.decoding.settings)
            ) as generated:
                for piece in generated:
                    pieces.append(piece)
                    yield piece
        finally:
            if text := "".join(pieces).strip():
                self.messages = [*messages, {"role": "assistant", "content": text}]
                self.images, self._waiting, self._regions = images, [], []
                self.videos, self._clips = videos, []
