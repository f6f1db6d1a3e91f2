"""Serve a model directory with an OpenAI-compatible API.

Examples:
    sparse-vlm serve runs/quickstart/model --port 8000
    sparse-vlm serve runs/quickstart/model --device cuda:0 --dtype bfloat16
    sparse-vlm serve runs/quickstart/model --ignore tools
"""

import argparse

from sparse_vlm.command_line import CommandParser, add_device_arguments


def add_arguments(parser: CommandParser) -> None:
    """Add the arguments of `run`."""
    parser.add_argument("model", help="a model directory; requests name it by its path or by the last part of its path")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1, local only)")
    parser.add_argument("--port", type=int, default=8000, help="0: a free port, which is printed (default: 8000)")
    add_device_arguments(parser)
    parser.add_argument(
        "--bits",
        "--quantization",
        type=_bits,
        help="quantize the language model's weights: 4, 8, bnb-4bit or bnb-8bit",
    )
    parser.add_argument("--served_name", help="the model's name in requests")
    parser.add_argument("--max_images", type=int, default=16, help="most images in a request (default: 16)")
    parser.add_argument("--max_megapixels", type=float, default=64, help="largest image (default: 64)")
    parser.add_argument("--max_megabytes", type=float, default=100, help="largest request (default: 100)")
    parser.add_argument(
        "--max_requests",
        type=int,
        default=64,
        help="most requests at once, waiting ones included; others are refused (default: 64)",
    )
    parser.add_argument(
        "--max_new_tokens",
        type=int,
        default=1024,
        help="most tokens of an answer where the request sets no limit (default: 1024)",
    )
    parser.add_argument(
        "--image_urls",
        default="none",
        help="http(s) image URLs to fetch: none, public (those on the internet) or any (default: none)",
    )
    parser.add_argument("--fetch_seconds", type=float, default=10, help="longest time to fetch an image (default: 10)")
    parser.add_argument(
        "--api_key", help="key that requests must carry (default: the environment variable SPARSE_VLM_API_KEY, or none)"
    )
    parser.add_argument(
        "--allow_origin",
        action="append",
        default=[],
        help="web site whose pages may use the API, such as http://localhost:3000, or * for all; may be repeated",
    )
    parser.add_argument(
        "--ignore",
        metavar="FIELD",
        action="append",
        default=[],
        help="field of requests to ignore instead of refusing it, such as tools; may be repeated",
    )


def run(arguments: argparse.Namespace) -> None:
    """Serve until interrupted."""
    from transformers.utils.logging import disable_progress_bar

    from sparse_vlm.vlm.serving.server import serve

    disable_progress_bar()
    options = {name: value for name, value in vars(arguments).items() if name not in ("model", "run")}
    serve(arguments.model, **options)


def _bits(text: str) -> int:
    """A number of bits; accepts the values of `transformers serve --quantization` as well."""
    return {"bnb-4bit": 4, "bnb-8bit": 8}.get(text) or int(text)
