"""Answer one question in the terminal; without a question, hold a conversation.

Examples:
    sparse-vlm chat --model runs/quickstart/model --image IMAGE.png "what color is the shape?"
    sparse-vlm chat --model runs/quickstart/model
    sparse-vlm chat --model MODEL_DIR --image IMAGE.png --visual_tokens 16 "what is shown?"
    sparse-vlm chat --model MODEL_DIR --image IMAGE.png --region 0.5,0,1,0.5 "what is in the upper right?"
    sparse-vlm chat --model MODEL_DIR --video CLIP.mp4 --frame_tokens 9 --timestamps "what happens?"
    sparse-vlm chat --model MODEL_DIR --stream CLIP.mp4
"""

import argparse

from sparse_vlm.command_line import CommandParser, add_device_arguments, add_video_arguments
from sparse_vlm.errors import UserError


def add_arguments(parser: CommandParser) -> None:
    """Add the arguments of `run`."""
    parser.add_argument("question", nargs="?", help="without it, questions are read from the terminal")
    parser.add_argument("--model", required=True, help="a model directory")
    parser.add_argument(
        "--image", action="append", default=[], help="an image file for the (first) question; may be repeated"
    )
    parser.add_argument(
        "--visual_tokens",
        type=int,
        metavar="K",
        help="number of visual tokens of each image, e.g. 16 (default: the model's own)",
    )
    parser.add_argument(
        "--region",
        action="append",
        default=[],
        metavar="X1,Y1,X2,Y2",
        help="a box of the last image to look at more closely, with [0, 1] from edge to edge, e.g. 0.5,0,1,0.5 for its "
        "upper right quarter; for the (first) question; may be repeated",
    )
    parser.add_argument(
        "--video", action="append", default=[], help="a video file for the (first) question; may be repeated"
    )
    parser.add_argument(
        "--stream",
        metavar="FILE|/dev/video0",
        help="play a video file, or read a camera of Linux, and answer questions meanwhile about its last frames, at "
        "most --max_frames; with a question, answer it at the end of the file",
    )
    add_video_arguments(parser)
    parser.add_argument("--max_new_tokens", type=int, default=256, help="most tokens of an answer (default: 256)")
    parser.add_argument(
        "--temperature", type=float, default=0.0, help="0: greedy decoding; more: sampling (default: 0)"
    )
    parser.add_argument("--top_p", type=float, default=1.0, help="top-p of sampling (default: 1)")
    parser.add_argument("--bits", type=int, choices=(4, 8), help="quantize the language model's weights (bitsandbytes)")
    add_device_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    """Print the answer as it is generated, or start the conversation."""
    from transformers.utils.logging import disable_progress_bar

    from sparse_vlm.cli.streaming import open_source, watch
    from sparse_vlm.cli.terminal import converse
    from sparse_vlm.devices import choose_device, choose_dtype
    from sparse_vlm.image_files import open_image
    from sparse_vlm.videos.files import VideoFile
    from sparse_vlm.vlm.conversation import Conversation
    from sparse_vlm.vlm.decoding import Decoding
    from sparse_vlm.vlm.language.quantization import quantization
    from sparse_vlm.vlm.loading import load_vlm
    from sparse_vlm.vlm.videos.processor import VideoOptions
    from sparse_vlm.vlm.videos.stream import VideoStream
    from sparse_vlm.vlm.views import check_count, parse_box

    disable_progress_bar()
    if arguments.visual_tokens is not None:
        check_count(arguments.visual_tokens)
    if arguments.region and not arguments.image:
        raise UserError("--region is a box of an image: add --image FILE.")
    regions = [parse_box(text) for text in arguments.region]
    options = VideoOptions(arguments.fps, arguments.max_frames, arguments.frame_tokens, arguments.timestamps)
    video = arguments.video or arguments.stream is not None
    if arguments.question is not None and not video and options != VideoOptions():
        raise UserError("--fps, --max_frames, --frame_tokens and --timestamps are for videos: add --video FILE.")
    stream = None if arguments.stream is None else open_source(arguments)
    device = choose_device(arguments.device)
    dtype = choose_dtype(arguments.dtype, device)
    decoding = Decoding(arguments.temperature, arguments.top_p)
    images = [open_image(file) for file in arguments.image]
    videos = [VideoFile(file) for file in arguments.video]
    settings = None if arguments.bits is None else quantization(arguments.bits, dtype)
    loaded = load_vlm(arguments.model, dtype, quantization=settings, device=device)
    if stream is not None:
        watch(VideoStream(*loaded, options, decoding), stream, arguments)
        return
    conversation = Conversation(*loaded, decoding, arguments.visual_tokens, options)
    for image in images:
        conversation.show(image)
    for box in regions:
        conversation.look_at(box)
    for video in videos:
        conversation.watch(video)
    if arguments.question is None:
        converse(conversation, arguments.max_new_tokens)
        return
    for piece in conversation.ask(arguments.question, arguments.max_new_tokens):
        print(piece, end="", flush=True)
    print()
