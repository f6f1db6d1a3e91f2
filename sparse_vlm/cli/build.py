"""Build a model directory from an encoder directory and an LLM.

Examples:
    sparse-vlm build encoder HuggingFaceTB/SmolLM2-135M-Instruct model
    sparse-vlm build encoder vicuna-7b-v1.5 model --chat_template llava_v1
"""

import argparse

from sparse_vlm.command_line import CommandParser


def add_arguments(parser: CommandParser) -> None:
    """Add the arguments of `run`."""
    parser.add_argument(
        "encoder_dir", help="a SparseFormer directory, or a dense ViT: a teacher as for train.bootstrap"
    )
    parser.add_argument("llm", help="a causal LM: a directory, a .gguf file, or a name on the Hugging Face hub")
    parser.add_argument("out_dir", help="the model directory to write")
    parser.add_argument("--gguf_file", help="name of the GGUF file in the directory LLM")
    parser.add_argument("--chat_template", help="a Jinja file or text to use instead of the LLM's own template")
    parser.add_argument("--projector", default="mlp2x_gelu", help="mlp2x_gelu or linear (default: mlp2x_gelu)")
    parser.add_argument(
        "--vision_feature_layer", type=int, default=-2, help="-2: the input of the last block (default: -2)"
    )
    parser.add_argument(
        "--vision_feature_select_strategy",
        default="default",
        choices=("default", "full"),
        help="default: the latent tokens; full: the CLS token as well (default: default)",
    )
    parser.add_argument(
        "--aspect",
        default="crop",
        choices=("crop", "native"),
        help="crop: the encoder sees the central square of an image; native: the whole image in its own "
        "aspect ratio (default: crop)",
    )
    parser.add_argument("--image_size", type=int, help="input side of a dense ViT in pixels (default: its own)")
    parser.add_argument(
        "--teacher_layer", type=int, help="block of a dense ViT behind which its blocks are cut off (default: the last)"
    )
    parser.add_argument(
        "--dtype", help="float32, bfloat16 or float16 (default: the LLM's own; float32 for a GGUF file)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the new projector's weights (default: 0)")


def run(arguments: argparse.Namespace) -> None:
    """Write the model directory."""
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
        image_size=arguments.image_size,
        teacher_layer=arguments.teacher_layer,
        dtype=arguments.dtype,
        seed=arguments.seed,
    )
    print(f"Model directory: {arguments.out_dir}")
