"""SparseFormer vision encoders for multimodal LLMs."""

import sparse_vlm.timm_models  # noqa: F401  (registers with timm, which the encoder has imported anyway)
from sparse_vlm.encoder import EncoderOutput, SparseFormer, SparseFormerConfig, create_encoder, list_encoders
from sparse_vlm.import_hook import after_import

__all__ = ["EncoderOutput", "SparseFormer", "SparseFormerConfig", "create_encoder", "list_encoders"]


def _register_with_transformers() -> None:
    import transformers

    if int(transformers.__version__.split(".")[0]) >= 5:  # the encoder, and so LLaVA's tower, run with older ones too
        import sparse_vlm.vlm  # noqa: F401


# Model directories of ours open with transformers' Auto classes as soon as both packages are imported, in either
# order. transformers itself takes seconds to import and is not needed for the encoder: so not before the user does.
after_import("transformers", _register_with_transformers)
