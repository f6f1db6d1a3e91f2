"""The authors' released checkpoint files: where they are, and fetching one once."""

from pathlib import Path
from urllib.error import URLError

import torch

from sparse_vlm.encoder.variants import variant_config
from sparse_vlm.errors import UserError

RELEASE = "https://github.com/showlab/sparseformer/releases/download/v2.0.0-refactor"
# The authors publish no checksums; `load_strictly` and `weights_only` are what guards a file against being another.
RELEASED_FILES = {
    "sparseformer-v1-t": "sparseformer_v1_tiny_converted.pth",
    "sparseformer-v1-s": "sparseformer_v1_small_converted.pth",
    "sparseformer-v1-b": "sparseformer_v1_base_converted.pth",
    "sparseformer-augreg-b": "sparseformer_btsp_augreg_base_converted.pth",
    "sparseformer-augreg-l": "sparseformer_btsp_augreg_large_converted.pth",
    "sparseformer-clip-b": "sparseformer_btsp_openai_clip_base_converted.pth",
    "sparseformer-clip-l": "sparseformer_btsp_openai_clip_large_converted.pth",
}


def fetch_released(variant: str) -> Path:
    """The released checkpoint of a variant in torch's cache (`$TORCH_HOME/hub/checkpoints`), downloaded if need be.

    Args:
        variant: e.g. "sparseformer-clip-l".

    Raises:
        UserError: unknown variant (the nearest ones are named), or the file is not there and cannot be fetched.
    """
    variant_config(variant)
    address = f"{RELEASE}/{RELEASED_FILES[variant]}"
    file = Path(torch.hub.get_dir()) / "checkpoints" / RELEASED_FILES[variant]
    if file.is_file():
        return file
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(address, str(file))  # writes a temporary file, then renames it
    except (URLError, OSError) as error:
        raise UserError(
            f"The released weights of {variant} cannot be fetched from {address} ({error}). "
            f"Without a network put that file at {file}, or name weights of your own."
        ) from error
    return file
