"""Draw the RoIs and sampling points of an encoder on images.

Examples:
    sparse-vlm rois IMAGE.jpg --model runs/quickstart/model -o rois.png
    sparse-vlm rois A.jpg B.jpg --model encoder -o rois.pdf --max_tokens 16
    sparse-vlm rois IMAGE.jpg --model encoder -o rois.png --tokens 9
"""

import argparse
from importlib.util import find_spec

from sparse_vlm.command_line import CommandParser, add_device_arguments
from sparse_vlm.errors import UserError


def add_arguments(parser: CommandParser) -> None:
    """Add the arguments of `run`."""
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files; each becomes a row of the figure")
    parser.add_argument("--model", required=True, help="an encoder directory or a model directory")
    parser.add_argument("-o", "--output", required=True, help="the figure to write: .png, .svg or .pdf")
    parser.add_argument(
        "--max_tokens", type=int, default=64, help="most tokens to draw, evenly spread over all (default: 64)"
    )
    parser.add_argument("--tokens", type=int, help="number of latent tokens (default: the encoder's own)")
    add_device_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    """Write the figure.

    Raises:
        UserError: matplotlib is missing, or an argument is invalid.
    """
    from sparse_vlm.devices import choose_device, choose_dtype
    from sparse_vlm.image_files import open_image
    from sparse_vlm.model_directory import open_encoder, read_config

    if arguments.max_tokens < 1:
        raise UserError(f"--max_tokens must be 1 or more, got {arguments.max_tokens}.")
    if find_spec("matplotlib") is None:
        raise UserError("Drawing needs matplotlib: pip install matplotlib.")
    from sparse_vlm.draw import roi_figure
    from sparse_vlm.figures import check_figure, save_figure

    check_figure("--output", arguments.output, [*arguments.images, arguments.model])
    images = [open_image(file) for file in arguments.images]
    device = choose_device(arguments.device)
    encoder = open_encoder(arguments.model).to(device, choose_dtype(arguments.dtype, device))
    aspect = read_config(arguments.model).get("vision_config", {}).get("aspect", "crop")  # an encoder's has none
    save_figure(roi_figure(encoder, images, arguments.max_tokens, aspect, arguments.tokens), arguments.output)
    print(f"RoIs and sampling points: {arguments.output}")
