"""The page's handlers without a browser."""

import asyncio
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import gradio as gr

from demo.events import Events
from demo.interface import lay_out
from demo.models import OpenModel


def events_of(models: Sequence[OpenModel]) -> Events:
    """Lay out the page of some models and return its handlers."""

    async def build() -> Events:  # without an event loop gradio creates its own and does not close them
        with gr.Blocks():
            return Events(lay_out(models, [], 6), models, max_megapixels=1, max_images=2)

    with ThreadPoolExecutor(1) as thread:  # playwright's event loop runs in the main thread after a browser test
        return thread.submit(lambda: asyncio.run(build())).result()


def last(updates: Iterator[dict[Any, Any]]) -> dict[Any, Any]:
    """Merge all updates of a handler; later values replace earlier ones."""
    return {component: value for update in updates for component, value in update.items()}
