"""Teachers: pre-trained VisionTransformers from timm or open_clip, opened by name or from a local file or directory."""

from sparse_vlm.bootstrap.teachers.sources import TeacherSource, open_teacher, parse_spec
from sparse_vlm.bootstrap.teachers.teacher import Teacher, TextEncoder

__all__ = ["Teacher", "TeacherSource", "TextEncoder", "open_teacher", "parse_spec"]
