"""Models, processors and encoders uploaded to a stand-in of the hub, and opened by their names there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from sparse_vlm.encoder import SparseFormer
from sparse_vlm.errors import UserError
from tests.hub.stand_in import Hub, running_hub

UPLOAD = """
import sys, sparse_vlm
from transformers import AutoModelForImageTextToText, AutoProcessor
model = AutoModelForImageTextToText.from_pretrained(sys.argv[1])
AutoProcessor.from_pretrained(sys.argv[1]).push_to_hub("me/vlm")
model.push_to_hub("me/vlm", tags=["shapes"], commit_message="First")
model.save_pretrained(sys.argv[2], push_to_hub=True, repo_id="me/other")
"""
OPEN = """
import sys
sys.modules["sparse_vlm"] = None  # as if it were not installed
import torch
from PIL import Image
from transformers import AutoModelForMultimodalLM, pipeline
image = Image.open(sys.argv[1])
content = [{"type": "image", "image": image}, {"type": "text", "text": "What is shown?"}]
for task in ("image-text-to-text", "any-to-any"):
    options = {"max_new_tokens": 6, "generate_kwargs": {"do_sample": False}, "return_full_text": False}
    ask = pipeline(task, model="me/vlm", trust_remote_code=True)
    (answer,) = ask(text=[{"role": "user", "content": content}], **options)
    print("ANSWER", repr(answer["generated_text"]))
ask.processor.push_to_hub("me/again")
AutoModelForMultimodalLM.from_pretrained("me/vlm", trust_remote_code=True).push_to_hub("me/again")
"""
ENCODER = """
import sys
from sparse_vlm.encoder import SparseFormer
encoder = SparseFormer.from_pretrained(sys.argv[1])
encoder.push_to_hub("me/encoder")
again = SparseFormer.from_pretrained("me/encoder")
assert all(bool((value == again.state_dict()[name]).all()) for name, value in encoder.state_dict().items())
try:
    SparseFormer.from_pretrained("me/gone")
except Exception as error:
    print(type(error).__name__, error)
"""


def run(hub: Hub, program: str, *arguments: object, home: Path) -> str:
    """Run a program that sees the stand-in as the hub, in a new process: the address is read at the first import."""
    environment = {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(home),
        "HF_TOKEN": "hf_stand_in",
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-c", program, *map(str, arguments)]
    result = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stdout


@pytest.mark.slow
def test_a_model_is_pushed_with_its_card_and_opened_by_its_name(
    vlm_dir: Path, shapes: list[Image.Image], tmp_path: Path
) -> None:
    shapes[0].save(tmp_path / "image.png")
    with running_hub() as hub:
        run(hub, UPLOAD, vlm_dir, tmp_path / "saved", home=tmp_path / "hf")
        pushed = hub.repositories["me/vlm"]
        card = pushed["README.md"].decode()
        assert "tags: [sparse_vlm, shapes]" in card
        assert "- Language model: llm" in card
        assert "# A vision-language model with 6 visual tokens per image" in card
        local = {path.name for path in vlm_dir.iterdir()}
        assert local <= pushed.keys()
        assert pushed["model.safetensors"] == (vlm_dir / "model.safetensors").read_bytes()
        assert (tmp_path / "saved" / "README.md").read_bytes() == hub.repositories["me/other"]["README.md"]
        printed = run(hub, OPEN, tmp_path / "image.png", home=tmp_path / "hf2")
        answers = re.findall(r"ANSWER (.+)", printed)
        assert len(answers) == 2
        assert answers[0] == answers[1]
        again = hub.repositories["me/again"]
        assert again["README.md"].decode().startswith("---\nlibrary_name: transformers\n")
        assert "# A vision-language model with 6 visual tokens per image" in again["README.md"].decode()
        assert {name for name in pushed if name.endswith(".py")} <= again.keys()


@pytest.mark.slow
def test_a_card_that_was_edited_on_the_hub_is_kept(vlm_dir: Path, tmp_path: Path) -> None:
    with running_hub() as hub:
        hub.repositories["me/vlm"] = {"README.md": b"# Mine"}
        hub.repositories["me/other"] = {}
        run(hub, UPLOAD, vlm_dir, tmp_path / "saved", home=tmp_path / "hf")
        assert hub.repositories["me/vlm"]["README.md"] == b"# Mine"
        assert "config.json" in hub.repositories["me/vlm"]


@pytest.mark.slow
def test_an_encoder_is_pushed_and_opened_by_its_name(encoder_dir: Path, tmp_path: Path) -> None:
    with running_hub() as hub:
        printed = run(hub, ENCODER, encoder_dir, home=tmp_path / "hf")
        assert set(hub.repositories["me/encoder"]) == {"README.md", "config.json", "model.safetensors"}
        assert "UserError There is no directory me/gone, and it cannot be downloaded" in printed


def test_a_name_that_cannot_be_downloaded_is_one_sentence() -> None:
    with pytest.raises(UserError, match="There is no directory nobody/nothing, and it cannot be downloaded"):
        SparseFormer.from_pretrained("nobody/nothing")
