"""`sparse-vlm …`: each subcommand's work is a function of the library; here are only its arguments."""

import argparse
import sys
import textwrap
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points, version
from importlib.util import find_spec
from pathlib import Path
from typing import TypeAlias

from sparse_vlm.device_arguments import add_device_arguments
from sparse_vlm.errors import UserError, exit_with_sentence

Parser = argparse.ArgumentParser
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
ROOT = Path(__file__).parents[1]  # of a clone: its folders that are not installed lie there


def _convert(arguments: argparse.Namespace) -> None:
    from sparse_vlm.encoder import SparseFormer
    from sparse_vlm.files import check_output

    check_output(arguments.out_dir, arguments.file)
    encoder = SparseFormer.from_released(arguments.file, arguments.variant)
    encoder.save_pretrained(arguments.out_dir)
    print(f"{arguments.variant}: {encoder.num_parameters / 1e6:.1f}M parameters written to {arguments.out_dir}")


def _info(arguments: argparse.Namespace) -> None:
    from sparse_vlm.info import describe

    print(describe(arguments.name))


def _export(arguments: argparse.Namespace) -> None:
    from sparse_vlm.encoder import SparseFormer
    from sparse_vlm.encoder.export import export_onnx
    from sparse_vlm.files import check_output_files

    check_output_files({"the ONNX file": arguments.file}, [arguments.encoder_dir])
    differences = export_onnx(SparseFormer.from_pretrained(arguments.encoder_dir), arguments.file, int8=arguments.int8)
    print(f"{arguments.file}: ONNX Runtime differs from PyTorch by {max(differences.values()):.1e} (relative)")


def _build(arguments: argparse.Namespace) -> None:
    from sparse_vlm.vlm.build import build_vlm

    build_vlm(
        arguments.encoder_dir,
        arguments.llm,
        arguments.out_dir,
        gguf_file=arguments.gguf_file,
        chat_template=arguments.chat_template,
        projector=arguments.projector,
        vision_feature_layer=arguments.vision_feature_layer,
        vision_feature_select_strategy=arguments.vision_feature_select_strategy,
        aspect=arguments.aspect,
        dtype=arguments.dtype,
        seed=arguments.seed,
    )
    print(f"Model directory: {arguments.out_dir}")


def _chat(arguments: argparse.Namespace) -> None:
    from transformers.utils.logging import disable_progress_bar

    from sparse_vlm.devices import choose_device, choose_dtype
    from sparse_vlm.image_files import open_image
    from sparse_vlm.vlm.conversation import Conversation
    from sparse_vlm.vlm.decoding import Decoding
    from sparse_vlm.vlm.language.quantization import quantization
    from sparse_vlm.vlm.loading import load_vlm
    from sparse_vlm.vlm.terminal import converse

    disable_progress_bar()
    device = choose_device(arguments.device)
    dtype = choose_dtype(arguments.dtype, device)
    decoding = Decoding(arguments.temperature, arguments.top_p)
    images = [open_image(file) for file in arguments.image]
    settings = None if arguments.bits is None else quantization(arguments.bits, dtype)
    conversation = Conversation(*load_vlm(arguments.model, dtype, quantization=settings, device=device), decoding)
    for image in images:
        conversation.show(image)
    if arguments.question is None:
        converse(conversation, arguments.max_new_tokens)
        return
    for piece in conversation.ask(arguments.question, arguments.max_new_tokens):
        print(piece, end="", flush=True)
    print()


def _rois(arguments: argparse.Namespace) -> None:
    from sparse_vlm.devices import choose_device, choose_dtype
    from sparse_vlm.image_files import open_image
    from sparse_vlm.model_directory import open_encoder, read_config

    if arguments.max_tokens < 1:
        raise UserError(f"--max_tokens must be 1 or more, got {arguments.max_tokens}.")
    if find_spec("matplotlib") is None:
        raise UserError("The image is drawn by matplotlib: pip install matplotlib.")
    from sparse_vlm.visualize import check_figure, roi_figure, save_figure

    check_figure("--output", arguments.output, [*arguments.images, arguments.model])
    images = [open_image(file) for file in arguments.images]
    device = choose_device(arguments.device)
    encoder = open_encoder(arguments.model).to(device, choose_dtype(arguments.dtype, device))
    aspect = read_config(arguments.model).get("vision_config", {}).get("aspect", "crop")  # an encoder's has none
    save_figure(roi_figure(encoder, images, arguments.max_tokens, aspect), arguments.output)
    print(f"RoIs and sampling points: {arguments.output}")


def _serve(arguments: argparse.Namespace) -> None:
    from transformers.utils.logging import disable_progress_bar

    from sparse_vlm.vlm.serving.server import serve

    disable_progress_bar()
    options = {name: value for name, value in vars(arguments).items() if name not in ("model", "run")}
    serve(arguments.model, **options)


def _bits(text: str) -> int:
    """A number of bits, also in the words of `transformers serve --quantization`."""
    return {"bnb-4bit": 4, "bnb-8bit": 8}.get(text) or int(text)


def _add(commands: Commands, name: str, run: Callable[[argparse.Namespace], None], text: str, examples: str) -> Parser:
    """A subcommand with its help and, behind its arguments, examples of it."""
    parser = commands.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog=f"examples:\n{textwrap.indent(textwrap.dedent(examples).strip(), '  ')}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def _add_encoder_commands(commands: Commands) -> None:
    convert = _add(
        commands,
        "convert",
        _convert,
        "the authors' checkpoint file -> an encoder directory",
        "sparse-vlm convert FILE.pth encoder --variant sparseformer-clip-l",
    )
    convert.add_argument("file", help=".pth or .safetensors, any of the released layouts")
    convert.add_argument("out_dir")
    convert.add_argument("--variant", required=True, help="e.g. sparseformer-clip-l; `sparse-vlm info` lists them")

    info = _add(
        commands,
        "info",
        _info,
        "what a variant, an encoder directory or a model directory holds; without a name: all variants",
        """
        sparse-vlm info
        sparse-vlm info sparseformer-clip-l
        sparse-vlm info runs/quickstart/model
        """,
    )
    info.add_argument("name", nargs="?", help="a variant or a directory")

    export = _add(
        commands,
        "export",
        _export,
        "an encoder directory -> an ONNX file, checked in ONNX Runtime",
        "sparse-vlm export encoder encoder.onnx",
    )
    export.add_argument("encoder_dir", help="of `sparse-vlm convert` or of a bootstrapping")
    export.add_argument("file", help="the ONNX file to write")
    export.add_argument(
        "--int8", action="store_true", help="faster and smaller, and rounded: see docs/encoder/speed.md"
    )

    rois = _add(
        commands,
        "rois",
        _rois,
        "where an encoder looks, drawn on pictures",
        """
        sparse-vlm rois PICTURE.jpg --model runs/quickstart/model -o rois.png
        sparse-vlm rois A.jpg B.jpg --model encoder -o rois.pdf --max_tokens 16
        """,
    )
    rois.add_argument("images", nargs="+", metavar="IMAGE", help="a row of the picture each")
    rois.add_argument("--model", required=True, help="an encoder directory or a model directory")
    rois.add_argument("-o", "--output", required=True, help="file to write: .png, .svg or .pdf")
    rois.add_argument("--max_tokens", type=int, default=64, help="draw so many tokens, evenly spread (default: 64)")
    add_device_arguments(rois)


def _add_vlm_commands(commands: Commands) -> None:
    build = _add(
        commands,
        "build",
        _build,
        "an encoder directory and an LLM -> a model directory",
        """
        sparse-vlm build encoder HuggingFaceTB/SmolLM2-135M-Instruct model
        sparse-vlm build encoder vicuna-7b-v1.5 model --chat_template llava_v1
        """,
    )
    build.add_argument("encoder_dir", help="a SparseFormer directory, or an open_clip one whose image side is a ViT")
    build.add_argument("llm", help="directory, .gguf file, or name on the Hugging Face hub of a causal LM")
    build.add_argument("out_dir")
    build.add_argument("--gguf_file", help="name of the GGUF file in the directory LLM")
    build.add_argument("--chat_template", help="a Jinja file or text instead of the LLM's own template")
    build.add_argument("--projector", default="mlp2x_gelu", help="mlp2x_gelu (default) or linear")
    build.add_argument("--vision_feature_layer", type=int, default=-2, help="-2 (default): what enters the last block")
    build.add_argument(
        "--vision_feature_select_strategy",
        default="default",
        choices=("default", "full"),
        help="default: the latent tokens; full: CLS as well",
    )
    build.add_argument(
        "--aspect",
        default="crop",
        choices=("crop", "native"),
        help="crop (default): the middle square of a picture is seen; native: all of it, in its own aspect ratio",
    )
    build.add_argument("--dtype", help="float32, bfloat16 or float16 (default: the LLM's own; of GGUF float32)")
    build.add_argument("--seed", type=int, default=0, help="of the new projector")

    chat = _add(
        commands,
        "chat",
        _chat,
        "one question, answered in the terminal; without a question: a conversation",
        """
        sparse-vlm chat --model runs/quickstart/model --image PICTURE.png "what color is the shape?"
        sparse-vlm chat --model runs/quickstart/model
        """,
    )
    chat.add_argument("question", nargs="?")
    chat.add_argument("--model", required=True, help="a model directory")
    chat.add_argument(
        "--image", action="append", default=[], help="image file that the (first) question is about; again for more"
    )
    chat.add_argument("--max_new_tokens", type=int, default=256, help="of an answer (default: 256)")
    chat.add_argument("--temperature", type=float, default=0.0, help="0 (default): greedy; more: sample")
    chat.add_argument("--top_p", type=float, default=1.0, help="of sampling (default: 1)")
    chat.add_argument("--bits", type=int, choices=(4, 8), help="of the language model's weights (bitsandbytes)")
    add_device_arguments(chat)
    _add_serve(commands)


def _add_serve(commands: Commands) -> None:
    serve = _add(
        commands,
        "serve",
        _serve,
        "a model directory behind an OpenAI-compatible API",
        """
        sparse-vlm serve runs/quickstart/model --port 8000
        sparse-vlm serve runs/quickstart/model --device cuda:0 --dtype bfloat16
        """,
    )
    serve.add_argument("model", help="a model directory; requests name it by the last part of its path, or by the path")
    serve.add_argument("--host", default="127.0.0.1", help="where to listen (default: 127.0.0.1, this machine alone)")
    serve.add_argument("--port", type=int, default=8000, help="default: 8000; 0: a free one, which is printed")
    add_device_arguments(serve)
    serve.add_argument(
        "--bits", "--quantization", type=_bits, help="of the language model's weights: 4, 8, bnb-4bit or bnb-8bit"
    )
    serve.add_argument("--served_name", help="how requests name the model")
    serve.add_argument("--max_images", type=int, default=16, help="of a request (default: 16)")
    serve.add_argument("--max_megapixels", type=float, default=64, help="of an image (default: 64)")
    serve.add_argument(
        "--max_new_tokens", type=int, default=1024, help="of an answer whose request does not say (default: 1024)"
    )
    serve.add_argument(
        "--image_urls",
        default="none",
        help="http(s) addresses of images: none (default) are fetched; public: those of the internet; any",
    )
    serve.add_argument("--fetch_seconds", type=float, default=10, help="that an image may take (default: 10)")


def _add_other_commands(commands: Commands) -> None:
    """Those of the packages above this one: llava_patch, and demo where it is there, in a clone."""
    if str(ROOT) not in sys.path:
        sys.path.append(str(ROOT))  # last: it hides nothing
    for command in entry_points(group="sparse_vlm.commands"):
        if (ROOT / command.module.split(".")[0]).is_dir():
            command.load()(commands)


def build_parser() -> Parser:
    """The parser of `sparse-vlm`; every subcommand sets `run`, a function of the parsed arguments."""
    parser = argparse.ArgumentParser(
        prog="sparse-vlm",
        description="SparseFormer encoders for multimodal LLMs.",
        epilog="`sparse-vlm COMMAND --help` has the arguments of a command and examples.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('sparse-vlm')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_encoder_commands(commands)
    _add_vlm_commands(commands)
    _add_other_commands(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the `sparse-vlm` command; returns the exit status."""
    arguments = build_parser().parse_args(argv)
    return exit_with_sentence(lambda: arguments.run(arguments))


if __name__ == "__main__":
    sys.exit(main())
