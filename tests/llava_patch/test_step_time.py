import json
from pathlib import Path

import pytest

from tests.llava_patch.tiny import run_forked


@pytest.mark.slow
def test_counts_and_times_llavas_models(llava: None, tmp_path: Path) -> None:
    program = """
import json, dataclasses, llava_patch
llava_patch.install()
from llava_patch.step_time import measure
towers = [f"sparseformer-clip-b?weights=random&image_size={size}" for size in (64, 128)]
print(json.dumps([dataclasses.asdict(row) for row in measure(towers, "llama-20m", 1)]))
"""
    (tmp_path / "program.py").write_text(program)
    printed = run_forked(tmp_path / "program.py", printed=tmp_path / "printed.txt")
    small, large = json.loads(printed.strip().splitlines()[-1])
    assert (small["visual_tokens"], large["visual_tokens"]) == (48, 48)
    assert small["prefill_gmacs"] == pytest.approx(large["prefill_gmacs"])
    assert small["prefill_gmacs"] > 0
    assert 0 < small["tower_gmacs"] < large["tower_gmacs"]
    assert len(small["step_seconds"]) == len(large["tower_seconds"]) == 1


@pytest.mark.slow
def test_an_unknown_llm_is_a_sentence(llava: None, tmp_path: Path) -> None:
    command = ["-m", "llava_patch.step_time", "--llm", "tinyllama"]
    printed = run_forked(*command, printed=tmp_path / "printed.txt", exitcode=2)
    assert (
        printed.strip().splitlines()[-1].startswith("error: Unknown --llm 'tinyllama'. Did you mean 'tinyllama-1.1b'")
    )
