"""`sparse-vlm …`: each subcommand's work is a function of the library; here are only its arguments."""

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points

from sparse_vlm.errors import exit_with_sentence


def _convert(arguments: argparse.Namespace) -> None:
    from sparse_vlm.encoder import SparseFormer

    encoder = SparseFormer.from_released(arguments.file, arguments.variant)
    encoder.save_pretrained(arguments.out_dir)
    print(f"{arguments.variant}: {encoder.num_parameters / 1e6:.1f}M parameters written to {arguments.out_dir}")


def _info(arguments: argparse.Namespace) -> None:
    from sparse_vlm.encoder.info import describe

    print(describe(arguments.name))


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
        seed=arguments.seed,
    )
    print(f"Model directory: {arguments.out_dir}")


def _chat(arguments: argparse.Namespace) -> None:
    from transformers.utils.logging import disable_progress_bar

    from sparse_vlm.data.images import open_image
    from sparse_vlm.vlm.build import load_vlm
    from sparse_vlm.vlm.chat import stream

    disable_progress_bar()
    image = None if arguments.image is None else open_image(arguments.image)
    model, processor = load_vlm(arguments.model)
    for piece in stream(model, processor, image, arguments.question, arguments.max_new_tokens):
        print(piece, end="", flush=True)
    print()


def _add_vlm_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    build = commands.add_parser("build", help="an encoder directory and an LLM -> a model directory")
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
    build.add_argument("--seed", type=int, default=0, help="of the new projector")
    build.set_defaults(run=_build)

    chat = commands.add_parser("chat", help="one question about one image, answered in the terminal")
    chat.add_argument("question")
    chat.add_argument("--model", required=True, help="a model directory")
    chat.add_argument("--image", help="image file; without it the question is about no image")
    chat.add_argument("--max_new_tokens", type=int, default=256)
    chat.set_defaults(run=_chat)


def build_parser() -> argparse.ArgumentParser:
    """The parser of `sparse-vlm`; every subcommand sets `run`, a function of the parsed arguments."""
    parser = argparse.ArgumentParser(prog="sparse-vlm", description="SparseFormer encoders for multimodal LLMs.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    convert = commands.add_parser("convert", help="the authors' checkpoint file -> an encoder directory")
    convert.add_argument("file", help=".pth or .safetensors, any of the released layouts")
    convert.add_argument("out_dir")
    convert.add_argument("--variant", required=True, help="e.g. sparseformer-clip-l; `sparse-vlm info` lists them")
    convert.set_defaults(run=_convert)

    info = commands.add_parser("info", help="what an encoder variant or directory holds; without a name: all variants")
    info.add_argument("name", nargs="?", help="a variant or an encoder directory")
    info.set_defaults(run=_info)
    _add_vlm_commands(commands)
    for command in entry_points(group="sparse_vlm.commands"):  # of the packages above this one, e.g. llava_patch
        command.load()(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the `sparse-vlm` command; returns the exit status."""
    arguments = build_parser().parse_args(argv)
    return exit_with_sentence(lambda: arguments.run(arguments))


if __name__ == "__main__":
    sys.exit(main())
