"""SparseFormer, an image encoder: image → a few latent tokens. Needs torch, torchvision and timm."""

from sparse_vlm.encoder.config import CortexConfig, FocusConfig, SparseFormerConfig, StemConfig
from sparse_vlm.encoder.model import EncoderOutput, SparseFormer, create_encoder
from sparse_vlm.encoder.preprocessing import Preprocessing
from sparse_vlm.encoder.variants import list_encoders

__all__ = [
    "CortexConfig",
    "EncoderOutput",
    "FocusConfig",
    "Preprocessing",
    "SparseFormer",
    "SparseFormerConfig",
    "StemConfig",
    "create_encoder",
    "list_encoders",
]
