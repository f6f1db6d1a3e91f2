"""Videos with a clone of LLaVA-NeXT, which is not on PyPI: `LLAVA_NEXT=CLONE make test-llava-next`."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.llava_patch.tiny import run_forked

CLONE = os.environ.get("LLAVA_NEXT", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CLONE, reason="LLAVA_NEXT does not name a clone of LLaVA-NeXT, which is not on PyPI"),
]

START = """
import json, sys
from types import SimpleNamespace
clone, encoder, llama, out = sys.argv[1:]
sys.path.insert(0, clone)
import torch
import llava_patch
llava_patch.install()
import llava
from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
ids = torch.tensor([[1, 5, IMAGE_TOKEN_INDEX, 7, 8, 9]])
labels = torch.where(ids == IMAGE_TOKEN_INDEX, IGNORE_INDEX, ids)
video = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
report = {"llava": llava.__file__}
"""
TRAIN = """
from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM
torch.manual_seed(0)
model = LlavaLlamaForCausalLM.from_pretrained(llama, torch_dtype=torch.float32)
arguments = SimpleNamespace(
    vision_tower=f"sparseformer:{encoder}?tokens=9", vision_tower_pretrained=None, mm_vision_select_layer=-2,
    mm_vision_select_feature="patch", pretrain_mm_mlp_adapter=None, mm_patch_merge_type="flat",
    mm_projector_type="mlp2x_gelu", mm_resampler_type=None, add_faster_video=False,
)
model.get_model().initialize_vision_modules(arguments)
model.config.mm_spatial_pool_stride, model.config.mm_spatial_pool_mode = 2, "bilinear"
model.config.mm_use_im_start_end = model.config.mm_use_im_patch_token = False
for kind, images in (("video", [video]), ("image", [video[:1]])):
    prepared = model.prepare_inputs_labels_for_multimodal(ids, None, None, None, labels, images, modalities=[kind])
    report[kind] = prepared[4].shape[1] - (ids.shape[1] - 1)
loss = model(input_ids=ids, labels=labels, images=[video], modalities=["video"]).loss
loss.backward()
report["loss"] = loss.item()
report["moved"] = bool(model.get_model().mm_projector[0].weight.grad.abs().max() > 0)
model.save_pretrained(out)
print(json.dumps(report))
"""
ANSWER = """
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from llava.model.builder import load_pretrained_model
_, model, processor, _ = load_pretrained_model(
    out, None, "llava-llama", load_4bit=BITS == 4, load_8bit=BITS == 8,
    device_map="auto", torch_dtype="bfloat16", attn_implementation="eager"
)
tower = model.get_vision_tower()
with torch.inference_mode():
    frames = video.to(model.get_model().mm_projector[0].weight.dtype)
    words = model.generate(ids, images=[frames], modalities=["video"], do_sample=False, max_new_tokens=3)
    logits = model(input_ids=ids, images=[frames], modalities=["video"]).logits
    others = model(input_ids=ids, images=[frames.flip(0)], modalities=["video"]).logits
report["words"] = words.shape[1]
report["tokens"] = logits.shape[1] - (ids.shape[1] - 1)
report["finite"] = bool(logits.isfinite().all())
report["differs"] = bool((logits != others).any())
report["coordinates"] = str(tower.vision_tower.focus.initial_rois.weight.dtype)
report["quantized"] = [name for name, part in model.named_modules() if isinstance(part, (Linear4bit, Linear8bitLt))]
print(json.dumps(report))
"""


def program(text: str, checkpoint: Path, encoder: Path, llama: Path) -> Any:
    """Run a program with the clone, in a process of its own; return its report."""
    file = checkpoint.with_name(f"{checkpoint.name}.py")
    file.write_text(START + text)
    printed = run_forked(file, CLONE, encoder, llama, checkpoint, printed=file.with_suffix(".txt"))
    return json.loads(printed.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def trained(llama: Path, encoder_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """Checkpoint of a model with one of our towers, after a backward pass on a video, and the report."""
    checkpoint = tmp_path_factory.mktemp("next") / "llava-llama"
    report = program(TRAIN, checkpoint, encoder_dir, llama)
    for file in llama.glob("tokenizer*"):
        shutil.copy(file, checkpoint)
    return checkpoint, report


def test_videos_train(trained: tuple[Path, Any]) -> None:
    _, report = trained
    assert report["llava"].startswith(str(Path(CLONE).resolve()))
    assert (report["video"], report["image"]) == (3 * 9, 9)
    assert 0 < report["loss"] < 20
    assert report["moved"]


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_videos_are_answered_after_reload(trained: tuple[Path, Any], llama: Path, encoder_dir: Path, bits: int) -> None:
    report = program(f"BITS = {bits}\n{ANSWER}", trained[0], encoder_dir, llama)
    assert report["tokens"] == 3 * 9
    assert report["words"] >= 1
    assert report["finite"]
    assert report["differs"]
    assert report["coordinates"] == "torch.float32"
    assert len(report["quantized"]) == (0 if bits == 16 else 2 * 7)
    assert all(name.startswith("model.layers.") for name in report["quantized"])
