"""Replace the image encoder of an open_clip CLIP by a SparseFormer; the text encoder stays as it is.

    python docs/examples/swap_clip_tower.py --teacher open_clip:ViT-L-14/openai --encoder ENCODER_DIR --output CLIP_DIR

ENCODER_DIR is the output of `python -m train.bootstrap --teacher TEACHER`. Without --encoder, the SparseFormer inherits
the teacher's blocks and is not trained: enough to try the script, but useless for classification.
"""

import argparse
from collections.abc import Sequence

import torch
from PIL import Image

from sparse_vlm import SparseFormer
from sparse_vlm.bootstrap import bootstrap_from, open_teacher
from sparse_vlm.bootstrap.clip import SparseClip


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--teacher", required=True, help="open_clip:NAME/TAG, or an open_clip directory")
    parser.add_argument("--encoder", help="an encoder directory bootstrapped from the teacher")
    parser.add_argument("--output", required=True, help="the open_clip directory to write")
    arguments = parser.parse_args(argv)

    if arguments.encoder is None:
        encoder, _ = bootstrap_from(open_teacher(arguments.teacher), tokens=16)
    else:
        encoder = SparseFormer.from_pretrained(arguments.encoder)
    clip = SparseClip.from_teacher(arguments.teacher, encoder)
    clip.save(arguments.output)

    opened = SparseClip.load(arguments.output)
    captions = ["a red circle", "a blue square"]
    with torch.no_grad():
        image = opened.model.encode_image(opened.transform(Image.new("RGB", (64, 64), "red"))[None], normalize=True)
        texts = opened.model.encode_text(opened.tokenizer(captions), normalize=True)
    for caption, cosine in zip(captions, (image @ texts.T)[0].tolist(), strict=True):
        print(f"{caption}: cosine {cosine:.3f}")


if __name__ == "__main__":
    main()
