"""A chat that shows where the model looks: `python demo/app.py --model DIR [--compare DIR]`."""

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # as a script only this folder is on the path
    sys.path.insert(0, str(Path(__file__).parents[1]))

from demo.commands import add_arguments
from sparse_vlm.errors import UserError, exit_with_sentence


def run(arguments: argparse.Namespace) -> None:
    """Serves until it is interrupted; what was uploaded is deleted then.

    Raises:
        UserError: see `serve`.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the folder is deleted then, too
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # gradio reports imports and launches otherwise
    with tempfile.TemporaryDirectory(prefix="sparse-vlm-demo-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        serve(arguments, Path(folder))


def serve(arguments: argparse.Namespace, folder: Path) -> None:
    """Opens the models, builds the page and serves it until it is interrupted.

    Args:
        arguments: of `demo.commands`.
        folder: for uploads and drawings; nothing outside it is served.

    Raises:
        UserError: a model cannot be opened, or an argument does not fit.
    """
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise UserError('The demo needs gradio: pip install "sparse-vlm[demo]".') from error
    from demo.models import open_model
    from demo.replies import warm_up
    from sparse_vlm.devices import choose_device, choose_dtype
    from sparse_vlm.vlm.towers import use_cuda_graphs

    for name in ("max_new_tokens", "concurrency", "queue", "max_upload_mb", "max_megapixels", "max_images"):
        if getattr(arguments, name) <= 0:
            raise UserError(f"--{name} must be positive, got {getattr(arguments, name)}.")
    if not 0 <= arguments.port <= 65535:
        raise UserError(f"--port must lie in 0…65535, got {arguments.port}.")
    device = choose_device(arguments.device)
    dtype = choose_dtype(arguments.dtype, device)
    directories = [path for path in (arguments.model, arguments.compare) if path is not None]
    models = [open_model(path, device, dtype, arguments.bits) for path in directories]
    for opened in models if arguments.cuda_graphs else ():
        use_cuda_graphs(opened.model)
    warm_up(models)
    page = build_page(models, arguments, folder)
    try:
        page.launch(**launch_options(arguments))
    except OSError as error:
        raise UserError(f"The page cannot be served at {arguments.host}:{arguments.port}: {error}") from error


def build_page(models: Sequence[Any], arguments: argparse.Namespace, folder: Path) -> Any:
    """The page as `gr.Blocks`, with its queue."""
    import gradio as gr

    from demo.events import Events, connect
    from demo.examples import draw_examples, read_examples
    from demo.interface import lay_out

    examples = draw_examples(folder) if arguments.examples is None else read_examples(arguments.examples)
    with gr.Blocks(analytics_enabled=False, title="sparse_vlm", delete_cache=(3600, 86400)) as blocks:
        page = lay_out(models, examples, arguments.max_new_tokens)
        connect(Events(page, models, arguments.max_megapixels, arguments.max_images), arguments.concurrency)
    return blocks.queue(max_size=arguments.queue)


CONTENT_POLICY = "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; object-src 'none'"


def launch_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Options of `gr.Blocks.launch`: local, private, nothing fetched from others whatever an answer says."""
    import gradio as gr

    from demo.interface import CSS, LABEL_QUESTION

    fonts = ["system-ui", "sans-serif"]
    return {
        "server_name": arguments.host,
        "server_port": arguments.port or None,
        "share": arguments.share,
        "max_file_size": f"{arguments.max_upload_mb}mb",
        "theme": gr.themes.Default(font=fonts, font_mono=["monospace"]),
        "head": f'<meta http-equiv="Content-Security-Policy" content="{CONTENT_POLICY}">',
        "css": CSS,
        "js": LABEL_QUESTION,
        "footer_links": [],
        "run_history": False,
        "enable_monitoring": False,
        "ssr_mode": False,
        "pwa": False,
        "mcp_server": False,
        "allowed_paths": [],
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python demo/app.py", description=(__doc__ or "").splitlines()[0])
    add_arguments(parser)
    arguments = parser.parse_args(argv)
    return exit_with_sentence(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
