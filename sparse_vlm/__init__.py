"""SparseFormer vision encoders for multimodal LLMs."""

from sparse_vlm.encoder import EncoderOutput, SparseFormer, SparseFormerConfig, create_encoder, list_encoders

__all__ = ["EncoderOutput", "SparseFormer", "SparseFormerConfig", "create_encoder", "list_encoders"]
