"""Build a vision-language model from an encoder and your own language model, and ask it two questions.

    python docs/examples/build_vlm.py --encoder ENCODER_DIR --llm LLM --image IMAGE.jpg --output MODEL_DIR

LLM is a directory, a .gguf file or a name on the Hugging Face hub. The projector between the two is random: the model
answers in fluent text, but needs `python -m train.align` and `python -m train.instruct` to understand images.
"""

import argparse
from collections.abc import Sequence

from sparse_vlm.image_files import open_image
from sparse_vlm.info import describe
from sparse_vlm.vlm.build import build_vlm
from sparse_vlm.vlm.conversation import Conversation
from sparse_vlm.vlm.loading import load_vlm


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--llm", required=True)
    parser.add_argument("--image", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--max_new_tokens", type=int, default=32)
    arguments = parser.parse_args(argv)

    build_vlm(arguments.encoder, arguments.llm, arguments.output)
    print(describe(arguments.output))

    conversation = Conversation(*load_vlm(arguments.output))
    conversation.show(open_image(arguments.image))
    for question in ("What is shown?", "Are you sure?"):  # the second prompt contains the first answer
        print(f"> {question}")
        print("".join(conversation.ask(question, arguments.max_new_tokens)))


if __name__ == "__main__":
    main()
