"""variant.json: the same values pass, also as tuples; others and unreadable files are sentences."""

from pathlib import Path

import pytest

from sparse_vlm.errors import UserError
from train.stages.variant import VARIANT_FILE, require_same_variant, write_variant


def test_the_same_values_pass_and_others_are_named(tmp_path: Path) -> None:
    write_variant(tmp_path, {"classes": ("a", "b"), "encoder": {"focus": {"tokens": 4}}})
    require_same_variant(tmp_path, {"classes": ("a", "b"), "encoder": {"focus": {"tokens": 4}}})
    with pytest.raises(UserError, match=r"its encoder\.focus\.tokens is 4, this run's 9\. Choose another --output_dir"):
        require_same_variant(tmp_path, {"classes": ("a", "b"), "encoder": {"focus": {"tokens": 9}}})
    with pytest.raises(UserError, match=r"its encoder\.focus\.tokens is 4, this run's None"):
        require_same_variant(tmp_path, {"classes": ("a", "b")})


@pytest.mark.parametrize("content", [None, b"{", b"\xff"])
def test_an_unreadable_file_is_a_sentence(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / VARIANT_FILE).write_bytes(content)
    with pytest.raises(UserError, match=r"has no readable variant\.json"):
        require_same_variant(tmp_path, {})
