"""The demo's arguments, and `sparse-vlm demo`."""

import argparse
from pathlib import Path

from sparse_vlm.device_arguments import add_device_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `demo.app.run`."""
    parser.add_argument("--model", type=Path, required=True, help="model directory: ours, or any of transformers")
    parser.add_argument("--compare", type=Path, help="a second one, which gets the same questions")
    parser.add_argument("--examples", type=Path, help='JSON list of {"image": path, "question": text}')
    add_device_arguments(parser)
    parser.add_argument("--bits", type=int, help="4 or 8: the language model's weights, by bitsandbytes")
    parser.add_argument("--cuda_graphs", action="store_true", help="run a SparseFormer from CUDA graphs: sooner")
    parser.add_argument("--max_new_tokens", type=int, default=256, help="of an answer; a slider changes it")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in (default: %(default)s)")
    parser.add_argument("--port", type=int, default=7860, help="default: %(default)s; 0: any free one from 7860 on")
    parser.add_argument("--share", action="store_true", help="a public address through gradio's servers")
    parser.add_argument("--concurrency", type=int, default=1, help="questions answered at once (default: %(default)s)")
    parser.add_argument("--queue", type=int, default=64, help="questions that may wait (default: %(default)s)")
    parser.add_argument("--max_upload_mb", type=int, default=32, help="of a file (default: %(default)s)")
    parser.add_argument("--max_megapixels", type=float, default=64, help="of an image (default: %(default)s)")
    parser.add_argument("--max_images", type=int, default=8, help="of a question (default: %(default)s)")


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds `demo` to the parser of `sparse-vlm`."""
    text = "a chat in the browser that shows where the model looks"
    demo = commands.add_parser(
        "demo",
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog="examples:\n  sparse-vlm demo --model runs/quickstart/model\n"
        "  sparse-vlm demo --model runs/quickstart/model --compare runs/quickstart/dense/model",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(demo)
    demo.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    from demo.app import run

    run(arguments)
