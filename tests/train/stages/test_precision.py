"""bf16 under DeepSpeed becomes autocast, from any form of configuration."""

import json
from pathlib import Path
from typing import Any

import pytest

from sparse_vlm.errors import UserError
from train.stages.precision import with_autocast

CONFIG: dict[str, Any] = {"bf16": {"enabled": "auto"}, "zero_optimization": {"stage": 2}}


def test_dict_text_and_file_are_equivalent(tmp_path: Path) -> None:
    file = tmp_path / "zero2.json"
    file.write_text(json.dumps(CONFIG))
    found = with_autocast(str(file))
    assert found == with_autocast(CONFIG) == with_autocast(json.dumps(CONFIG))
    assert found["torch_autocast"] == {"enabled": True, "dtype": "bfloat16"}
    assert found["bf16"] == {"enabled": False}
    assert found["zero_optimization"] == {"stage": 2}


@pytest.mark.parametrize(("text", "message"), [(None, "is not a readable JSON file"), ("[]", "hold a JSON object")])
def test_a_bad_file_is_a_one_line_error(text: str | None, message: str, tmp_path: Path) -> None:
    file = tmp_path / "zero2.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError, match=message):
        with_autocast(str(file))
