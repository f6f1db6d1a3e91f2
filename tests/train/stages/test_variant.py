"""variant.json: equal values pass, also as tuples; differences and unreadable files are one-line errors."""

from pathlib import Path

import pytest

from sparse_vlm.errors import UserError
from train.stages.variant import VARIANT_FILE, require_same_variant, write_variant


def test_equal_values_pass_and_differences_are_named(tmp_path: Path) -> None:
    write_variant(tmp_path, {"classes": ("a", "b"), "encoder": {"focus": {"tokens": 4}}})
    require_same_variant(tmp_path, {"classes": ("a", "b"), "encoder": {"focus": {"tokens": 4}}})
    with pytest.raises(
        UserError, match=r"its encoder\.focus\.tokens is 4, this run's is 9\. Choose another --output_dir"
    ):
        require_same_variant(tmp_path, {"classes": ("a", "b"), "encoder": {"focus": {"tokens": 9}}})
    with pytest.raises(UserError, match=r"its encoder\.focus\.tokens is 4, this run's is None"):
        require_same_variant(tmp_path, {"classes": ("a", "b")})


@pytest.mark.parametrize("content", [None, b"{", b"\xff"])
def test_an_unreadable_file_is_a_one_line_error(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / VARIANT_FILE).write_bytes(content)
    with pytest.raises(UserError, match=r"has no readable variant\.json"):
        require_same_variant(tmp_path, {})
