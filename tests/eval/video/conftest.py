"""The fixtures of the encoders' evaluations: a tiny CLIP, a student beside it, and images of three classes."""

from tests.eval.encoders.conftest import clip_dir, photos, student_dir  # noqa: F401
