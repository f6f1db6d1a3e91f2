"""Encode an image and print its tokens, its embedding and the last RoIs.

Example:
    python docs/examples/encode_image.py IMAGE.jpg --model runs/quickstart/encoder
"""

import argparse
from collections.abc import Sequence

import torch

from sparse_vlm import SparseFormer, create_encoder
from sparse_vlm.image_files import open_image


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("image")
    parser.add_argument("--model", help="an encoder directory (default: sparseformer-clip-b with random weights)")
    arguments = parser.parse_args(argv)

    if arguments.model is None:
        torch.manual_seed(0)
        encoder = create_encoder("sparseformer-clip-b").eval()
    else:
        encoder = SparseFormer.from_pretrained(arguments.model)

    image = encoder.transform(open_image(arguments.image))  # float32[3, H, W]
    with torch.no_grad():
        out = encoder(image[None])

    prefix = encoder.num_prefix_tokens  # CLS
    latent = out.tokens[0, prefix:]
    print(f"{latent.shape[0]} latent tokens of {latent.shape[1]} channels, and {prefix} more (CLS)")
    print(f"one embedding of {out.pooled.shape[1]} channels")
    for token, (x1, y1, x2, y2) in enumerate(out.rois[-1, 0, :3].tolist()):
        print(f"token {token}: last RoI x {x1:.2f} … {x2:.2f}, y {y1:.2f} … {y2:.2f}")


if __name__ == "__main__":
    main()
