"""What SGLang's Transformers backend (0.5.23) asks of a model directory; see sglang_backend.py."""

from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

from sparse_vlm.cli import main
from sparse_vlm.vlm.chat import encode_prompt
from sparse_vlm.vlm.loading import load_vlm
from tests.forked import run_together

QUESTION = "What is shown?"


@pytest.fixture(scope="session")
def dense_vlm_dir(tmp_path_factory: pytest.TempPathFactory, llm_dir: Path) -> Path:
    """A VLM with a small dense ViT."""
    folder = tmp_path_factory.mktemp("dense")
    sizes = {"img_size": 32, "depth": 2, "embed_dim": 32, "num_heads": 2}
    torch.manual_seed(0)
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=0, **sizes)
    timm.models.save_for_hf(vit, folder / "vit", model_args=sizes, safe_serialization=True)
    assert main(["build", str(folder / "vit"), str(llm_dir), str(folder / "vlm"), "--image_size", "32"]) == 0
    return folder / "vlm"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fixture", "dtype"), [("vlm_dir", "float32"), ("vlm_dir", "bfloat16"), ("dense_vlm_dir", "bfloat16")]
)
def test_the_backend_computes_what_the_model_does(
    request: pytest.FixtureRequest, tmp_path: Path, fixture: str, dtype: str
) -> None:
    directory = request.getfixturevalue(fixture)
    image = Image.radial_gradient("L").resize((90, 60)).convert("RGB")
    image.save(tmp_path / "image.png")
    model, processor = load_vlm(directory, getattr(torch, dtype))
    inputs = encode_prompt(processor, image, QUESTION)
    content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    program = str(Path(__file__).with_name("sglang_backend.py"))
    words = [program, str(directory), prompt, str(tmp_path / "image.png"), dtype, str(tmp_path / "out")]
    printed = run_together(words, [{"HF_MODULES_CACHE": str(tmp_path / "modules")}], tmp_path / "printed.txt")
    found = load_file(tmp_path / "out")
    with torch.no_grad():
        expected = model.model(**inputs).last_hidden_state[0]
        features = model.model.get_image_features(inputs["pixel_values"].to(model.dtype)).pooler_output
    rounding = {"float32": 1e-4, "bfloat16": 0.05}[dtype]
    torch.testing.assert_close(found["features"], torch.cat(features), rtol=0, atol=rounding)
    torch.testing.assert_close(found["hidden"], expected, rtol=0, atol=rounding * float(expected.abs().max()))
    coordinates = printed.strip().splitlines()[-1]
    assert coordinates == ("coordinates:" if fixture == "dense_vlm_dir" else "coordinates: torch.float32")
