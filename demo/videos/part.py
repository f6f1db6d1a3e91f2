"""Layout and events of the page's part for videos."""

from collections.abc import Iterator
from contextlib import closing
from typing import Any, NamedTuple

import gradio as gr
from PIL import Image

from demo.interface import warn
from demo.models import OpenModel
from demo.videos.watching import Watching, refusal
from sparse_vlm.errors import UserError
from sparse_vlm.videos.live import OwnRate, file_frames
from sparse_vlm.videos.sampling import FPS
from sparse_vlm.vlm.videos.processor import VideoOptions

Update = dict[Any, Any]  # component of the page -> its new value
WEBCAM_SECONDS = 0.5  # between two frames


class Sources(NamedTuple):
    """The components that choose what plays."""

    clip: gr.File
    play: gr.Button
    stop: gr.Button
    fps: gr.Slider
    tokens: gr.Slider
    webcam: gr.Image


class VideoPart:
    """A clip or a webcam that plays with its RoIs moving, and a question at any time.

    Args:
        opened: the model that watches.
        max_new_tokens: most tokens of an answer.
    """

    def __init__(self, opened: OpenModel, max_new_tokens: int) -> None:
        self.opened, self.max_new_tokens = opened, max_new_tokens

    def lay_out(self) -> None:
        """Build the part inside the current `gr.Blocks` and connect its events."""
        with gr.Accordion("Video", open=False, elem_id="video"):
            if reason := refusal(self.opened):
                gr.Markdown(reason)
                return
            gr.Markdown(f"{self.opened.name} watches a clip or the webcam. Ask at any time about the last frames.")
            with gr.Row():
                with gr.Column():
                    sources = self._lay_out_sources()
                with gr.Column():
                    self.shown, self.text = _lay_out_player()
                    question = gr.Textbox(label="Question", placeholder="Ask while it plays", elem_id="video-question")
                    self.answer = gr.Textbox(label="Answer", interactive=False, elem_id="video-answer")
            self._connect(sources, question)

    def _lay_out_sources(self) -> Sources:
        clip = gr.File(label="Clip", file_types=["video", ".gif"], elem_id="clip", height=120)
        with gr.Row():
            play = gr.Button("Play", elem_id="video-play", size="sm")
            stop = gr.Button("Stop the video", elem_id="video-stop", size="sm")
        fps = gr.Slider(0.5, 8, FPS, step=0.5, label="Frames per second of a clip", elem_id="video-fps")
        tokens = self._token_slider()
        with gr.Accordion("Webcam of the stream", open=False):
            webcam = gr.Image(sources=["webcam"], streaming=True, type="pil", show_label=False, elem_id="video-webcam")
        return Sources(clip, play, stop, fps, tokens, webcam)

    def _connect(self, sources: Sources, question: gr.Textbox) -> None:
        session = gr.State(Watching())
        playing: dict[str, Any] = {
            "outputs": [self.shown, self.text],
            "show_progress": "hidden",
            "concurrency_limit": 8,
            "api_visibility": "private",
        }
        inputs = [sources.clip, session, sources.fps, sources.tokens]
        sources.play.click(self.play, inputs, **playing)
        sources.clip.upload(self.play, inputs, **playing)
        seen = [sources.webcam, session, sources.tokens]
        sources.webcam.stream(self.watch, seen, stream_every=WEBCAM_SECONDS, **playing)
        sources.stop.click(self.stop, [session], None, queue=False, api_visibility="private")
        question.submit(
            self.ask, [question, session], [self.answer], show_progress="hidden", concurrency_limit=1, api_name="watch"
        )

    def _token_slider(self) -> gr.Slider:
        own, least, most = self.opened.token_range
        processor = self.opened.processor
        tokens = processor.frame_tokens or own
        return gr.Slider(
            least,
            most,
            tokens,
            step=1,
            label="Visual tokens of a frame",
            elem_id="video-tokens",
            interactive=not self.opened.fixed,
        )

    def play(self, path: str | None, session: Watching, fps: float, tokens: int) -> Iterator[Update]:
        """Play a clip at its own rate; a slow machine leaves frames out."""
        try:
            if path is None:
                raise UserError("There is no clip: upload one first.")
            frames = file_frames(path, fps)
            number = session.start(self.opened, self._options(tokens, fps))
            paced = OwnRate(frames)
            for frame in paced:
                if session.number != number:
                    return
                drawn = session.add(self.opened, frame.image, frame.time)
                left_out = f" {paced.skipped} frames were left out: this machine is slow." if paced.skipped else ""
                yield {self.shown: drawn, self.text: session.describe() + left_out}
        except UserError as error:
            warn(error)

    def watch(self, image: Image.Image | None, session: Watching, tokens: int) -> Update:
        """Add a frame of the webcam."""
        if image is None:
            return {self.text: gr.skip()}
        try:
            options = self._options(tokens)
            if session.stream is None or not session.live or session.stream.options != options:
                session.start(self.opened, options, live=True)
            return {self.shown: session.add(self.opened, image), self.text: session.describe()}
        except UserError as error:
            warn(error)
            return {self.text: gr.skip()}

    def _options(self, tokens: int, fps: float | None = None) -> VideoOptions:
        return VideoOptions(fps, None, None if self.opened.fixed else int(tokens), timestamps=False)

    def stop(self, session: Watching) -> None:
        """End the clip that plays."""
        session.stop()

    def ask(self, question: str, session: Watching) -> Iterator[str]:
        """Answer about the last frames; frames wait meanwhile."""
        try:
            if session.stream is None:
                raise UserError("Nothing has played yet: upload a clip, or start the webcam.")
            with self.opened.lock, closing(session.stream.ask(question, self.max_new_tokens)) as pieces:
                text = ""
                for piece in pieces:
                    text += piece
                    yield text
        except UserError as error:
            warn(error)


def _lay_out_player() -> tuple[gr.Image, gr.Markdown]:
    shown = gr.Image(
        label="RoIs of the last sampling step",
        alt_text="a frame with its RoIs",
        elem_id="video-shown",
        interactive=False,
        format="png",
        image_mode="RGBA",
        height=360,
        buttons=[],
    )
    return shown, gr.Markdown(elem_id="video-text")
