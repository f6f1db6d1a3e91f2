"""Tokens → language, on transformers' Llava. Importing it registers our classes with transformers' Auto classes."""

from sparse_vlm.vlm import modeling, processing

__all__ = ["modeling", "processing"]
