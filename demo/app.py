"""Chat with one or two models in the browser and see where their visual tokens attend.

Examples:
    python -m demo.app --model runs/quickstart/model
    python -m demo.app --model runs/quickstart/model --compare runs/quickstart/dense/model
"""

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparse_vlm.command_line import CommandParser, add_device_arguments
from sparse_vlm.errors import UserError

POSITIVE = ("max_new_tokens", "concurrency", "queue", "max_upload_mb", "max_megapixels", "max_images")
CONTENT_POLICY = "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; object-src 'none'"


def build_parser() -> CommandParser:
    """Create the parser of this command."""
    parser = CommandParser.of_module("demo.app", __doc__)
    parser.add_argument("--model", type=Path, required=True, help="a model directory: ours, or any of transformers")
    parser.add_argument("--compare", type=Path, help="a second model, which answers the same questions")
    parser.add_argument("--examples", type=Path, help='a JSON list of {"image": path, "question": text}')
    add_device_arguments(parser)
    parser.add_argument("--bits", type=int, help="4 or 8: quantize the language model's weights (bitsandbytes)")
    parser.add_argument("--cuda_graphs", action="store_true", help="run a SparseFormer from CUDA graphs (faster)")
    parser.add_argument(
        "--max_new_tokens", type=int, default=256, help="initial value of the slider (default: %(default)s)"
    )
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 admits other machines (default: %(default)s)")
    parser.add_argument("--port", type=int, default=7860, help="0: a free port from 7860 up (default: %(default)s)")
    parser.add_argument("--share", action="store_true", help="create a public address through gradio's servers")
    parser.add_argument("--concurrency", type=int, default=1, help="questions answered at once (default: %(default)s)")
    parser.add_argument("--queue", type=int, default=64, help="most waiting questions (default: %(default)s)")
    parser.add_argument("--max_upload_mb", type=int, default=32, help="largest file (default: %(default)s)")
    parser.add_argument("--max_megapixels", type=float, default=64, help="largest image (default: %(default)s)")
    parser.add_argument("--max_images", type=int, default=8, help="most images in a question (default: %(default)s)")
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Serve the page until interrupted, then delete the uploads.

    Raises:
        UserError: see `serve`.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the folder is deleted as well
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # gradio reports imports and launches otherwise
    with tempfile.TemporaryDirectory(prefix="sparse-vlm-demo-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        serve(arguments, Path(folder))


def serve(arguments: argparse.Namespace, folder: Path) -> None:
    """Open the models, build the page and serve it until interrupted.

    Args:
        arguments: those of `build_parser`.
        folder: for uploads and drawings; files outside it are not served.

    Raises:
        UserError: a model cannot be opened, or an argument is invalid.
    """
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise UserError('The demo needs gradio: pip install "sparse-vlm[demo]".') from error
    from demo.answers import warm_up
    from demo.models import open_model
    from sparse_vlm.devices import choose_device, choose_dtype
    from sparse_vlm.vlm.towers import use_cuda_graphs

    for name in POSITIVE:
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
    """Build the page with its queue; returns `gr.Blocks`."""
    import gradio as gr

    from demo.events import Events, connect
    from demo.examples import draw_examples, read_examples
    from demo.interface import lay_out
    from demo.videos.part import VideoPart

    examples = draw_examples(folder) if arguments.examples is None else read_examples(arguments.examples)
    with gr.Blocks(analytics_enabled=False, title="sparse_vlm", delete_cache=(3600, 86400)) as blocks:
        page = lay_out(models, examples, arguments.max_new_tokens)
        connect(Events(page, models, arguments.max_megapixels, arguments.max_images), arguments.concurrency)
        VideoPart(models[0], arguments.max_new_tokens).lay_out()
    return blocks.queue(max_size=arguments.queue)


def launch_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Options of `gr.Blocks.launch`: local and private; the page fetches nothing from other servers."""
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
    return build_parser().run(run, argv)


if __name__ == "__main__":
    sys.exit(main())
