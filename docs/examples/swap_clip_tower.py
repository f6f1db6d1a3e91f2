"""Give an open_clip CLIP a SparseFormer for its image side; its text side stays as it is.

    python docs/examples/swap_clip_tower.py --teacher open_clip:ViT-L-14/openai --student ENCODER_DIR --output CLIP_DIR

ENCODER_DIR is what `python -m train.bootstrap --teacher TEACHER` wrote. Without --student the SparseFormer inherits
the teacher's blocks and is not trained: good for trying, useless for classifying.
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
    parser.add_argument("--teacher", required=True, help="open_clip:NAME/TAG, or a directory of open_clip")
    parser.add_argument("--student", help="an encoder directory, bootstrapped from the teacher")
    parser.add_argument("--output", required=True, help="an open_clip directory to write")
    arguments = parser.parse_args(argv)

    if arguments.student is None:
        student, _ = bootstrap_from(open_teacher(arguments.teacher), tokens=16)
    else:
        student = SparseFormer.from_pretrained(arguments.student)
    clip = SparseClip.from_teacher(arguments.teacher, student)
    clip.save(arguments.output)

    again = SparseClip.load(arguments.output)
    captions = ["a red circle", "a blue square"]
    with torch.no_grad():
        picture = again.model.encode_image(again.transform(Image.new("RGB", (64, 64), "red"))[None], normalize=True)
        texts = again.model.encode_text(again.tokenizer(captions), normalize=True)
    for caption, cosine in zip(captions, (picture @ texts.T)[0].tolist(), strict=True):
        print(f"{caption}: cosine {cosine:.3f}")


if __name__ == "__main__":
    main()
