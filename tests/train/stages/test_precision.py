"""bf16 under DeepSpeed becomes autocast, wherever the configuration comes from."""

import json
from pathlib import Path
from typing import Any

import pytest

from sparse_vlm.errors import UserError
from train.stages.precision import with_autocast

CONFIG: dict[str, Any] = {"bf16": {"enabled": "auto"}, "zero_optimization": {"stage": 2}}


def test_a_dict_a_text_and_a_file_are_the_same(tmp_path: Path) -> None:
    file = tmp_path / "zero2.json"
    file.write_text(json.dumps(CONFIG))
    found = with_autocast(str(file))
    assert found == with_autocast(CONFIG) == with_autocast(json.dumps(CONFIG))
    assert found["torch_autocast"] == {"enabled": True, "dtype": "bfloat16"}
    assert found["bf16"] == {"enabled": False}
    assert found["zero_optimization"] == {"stage": 2}


@pytest.mark.parametrize(("text", "sentence"), [(None, "is no readable JSON file"), ("[]", "hold a JSON object")])
def test_a_bad_file_is_a_sentence(text: str | None, sentence: str, tmp_path: Path) -> None:
    file = tmp_path / "zero2.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError, match=sentence):
        with_autocast(str(file))
