"""LLaVA's own reload, evaluation and chat with checkpoints that it trained with a SparseFormer tower."""

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from tests.llava_patch.conftest import train
from tests.llava_patch.tiny import run_forked, training_arguments

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("llava")]
WITH_BITS = pytest.mark.skipif(transformers.__version__ < "5", reason="transformers 4 knows these arguments itself")

RELOAD = """
import json, sys, warnings
import torch
from pathlib import Path
import llava_patch
llava_patch.install()
from llava.constants import IMAGE_TOKEN_INDEX
from llava.mm_utils import process_images, tokenizer_image_token
from llava.model.builder import load_pretrained_model
from PIL import Image
from safetensors.torch import load_file

path, base, name, folder = sys.argv[1:]
tokenizer, model, processor, _ = load_pretrained_model(path, base or None, name, device="cpu")
model.float()
images = [Image.open(Path(folder) / f"{colour}.png") for colour in ("red", "blue")]
pixels = process_images(images, processor, model.config)
prompt = "USER: <image>\\nWhich colour is it? ASSISTANT:"
ids = tokenizer_image_token(prompt, tokenizer, IMAGE_TOKEN_INDEX, return_tensors="pt")[None]
with torch.inference_mode():
    logits = [model(input_ids=ids, images=pixels[i : i + 1].float()).logits for i in range(2)]
    words = model.generate(ids, images=pixels[:1].float(), do_sample=False, max_new_tokens=4)
report = {
    "tokens": logits[0].shape[1] - ids.shape[1] + 1,
    "differs": bool((logits[0] != logits[1]).any()),
    "finite": bool(torch.stack([part.isfinite().all() for part in logits]).all()),
    "generated": words.shape[1],
    "equal": {},
}
def compare(kind, saved, loaded):
    same = [torch.equal(value.half(), loaded[key].half()) for key, value in saved.items()]
    report["equal"][kind] = bool(same) and all(same)
state = model.state_dict()
"""
FULL = """
saved = load_file(Path(path) / "model.safetensors")
compare("all", saved, state)
print(json.dumps(report))
"""
PROJECTOR = """
compare("projector", torch.load(Path(path) / "mm_projector.bin", weights_only=True), state)
compare("llm", load_file(Path(base) / "model.safetensors"), state)
print(json.dumps(report))
"""
LORA = """
others = torch.load(Path(path) / "non_lora_trainables.bin", weights_only=True)
compare("projector", {key.removeprefix("base_model.model."): value for key, value in others.items()}, state)
before, adapter = load_file(Path(base) / "model.safetensors"), load_file(Path(path) / "adapter_model.safetensors")
scale = json.loads((Path(path) / "adapter_config.json").read_text())
key = "model.layers.0.self_attn.q_proj"
a, b = (adapter[f"base_model.model.{key}.lora_{side}.weight"].float() for side in "AB")
merged = before[f"{key}.weight"].float() + b @ a * scale["lora_alpha"] / scale["r"]
report["merged"] = float((merged - state[f"{key}.weight"]).abs().max())
report["moved"] = float((b @ a).abs().max())
print(json.dumps(report))
"""


def reload(program: str, path: Path, base: Path | str, data: Path) -> Any:
    """Report on a checkpoint loaded by LLaVA's load_pretrained_model."""
    file = path.with_name(f"{path.name}.reload.py")
    file.write_text(RELOAD + program)
    printed = run_forked(file, path, base, path.name, data, printed=file.with_suffix(".txt"))
    return json.loads(printed.strip().splitlines()[-1])


def answers(report: Any) -> bool:
    """Check that there are six visual tokens, and that the logits depend on the image."""
    return report["tokens"] == 6 and report["differs"] and report["finite"] and report["generated"] >= 1


def test_full_checkpoint(finetuned: Path, data: Path) -> None:
    report = reload(FULL, finetuned, "", data)
    assert answers(report)
    assert report["equal"] == {"all": True}


def test_projector_on_its_base(pretrained: Path, llama: Path, data: Path) -> None:
    report = reload(PROJECTOR, pretrained, llama, data)
    assert answers(report)
    assert report["equal"] == {"projector": True, "llm": True}


def test_lora_on_its_base(lora: Path, llama: Path, data: Path) -> None:
    report = reload(LORA, lora, llama, data)
    assert answers(report)
    assert report["equal"] == {"projector": True}
    assert report["merged"] < 2e-4  # float16
    assert report["moved"] > 0


PARTS = """
from llava.constants import IGNORE_INDEX
batch = torch.cat([ids, ids])
labels = torch.where(batch == IMAGE_TOKEN_INDEX, IGNORE_INDEX, batch)
with torch.inference_mode():
    features = model.encode_images(pixels.float())
    prepared = model.prepare_inputs_labels_for_multimodal(batch, None, None, None, labels, pixels.float())
    loss = model(input_ids=batch, labels=labels, images=pixels.float()).loss
report["num_patches"] = model.get_vision_tower().num_patches
report["features"] = list(features.shape)
report["embedded"] = list(prepared[4].shape)
report["labels"] = list(prepared[5].shape)
report["words"] = ids.shape[1] - 1
report["loss"] = loss.item()
"""


def test_the_number_of_tokens_in_the_name_is_saved_and_reloaded(
    llama: Path, tower: str, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "llava-nine"
    options = {"version": "plain", "tune_mm_mlp_adapter": True, "max_steps": 1}
    train(*training_arguments(llama, f"{tower}?tokens=9&aspect=native", data, "plain.json", out, **options))
    assert json.loads((out / "config.json").read_text())["mm_vision_tower"] == f"{tower}?tokens=9&aspect=native"
    report = reload(PARTS + PROJECTOR, out, llama, data)
    assert report["tokens"] == report["num_patches"] == 9
    assert report["differs"]
    assert report["features"] == [2, 9, 64]
    assert report["embedded"] == [2, 9 + report["words"], 64]
    assert report["labels"] == report["embedded"][:2]
    assert 0 < report["loss"] < 20
    assert report["equal"] == {"projector": True, "llm": True}
    config = (out / "config.json").read_text()
    (out / "config.json").write_text(config.replace("?tokens=9", "?tokens=4"))
    assert reload(PROJECTOR, out, llama, data)["tokens"] == 4


def test_training_refuses_tokens_that_leave_no_room_for_text(
    llama: Path, tower: str, data: Path, tmp_path: Path
) -> None:
    options = {"version": "plain", "tune_mm_mlp_adapter": True, "max_steps": 1, "model_max_length": 32}
    command = training_arguments(llama, f"{tower}?tokens=36", data, "plain.json", tmp_path / "llava-long", **options)
    printed = run_forked("-m", "llava_patch", "llava.train.train", *command, printed=tmp_path / "out.txt", exitcode=2)
    assert "An image has 36 visual tokens" in printed
    assert "the language model takes 32 tokens, text included" in printed
    assert "Traceback" not in printed


def test_seeded_random_variant_reloads_the_same(llama: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "llava-random"
    tower = "sparseformer-clip-b?weights=random&image_size=64"
    options = {"version": "plain", "tune_mm_mlp_adapter": True, "max_steps": 1}
    train(*training_arguments(llama, tower, data, "plain.json", out, **options))
    report = reload(PROJECTOR, out, llama, data)
    assert report["tokens"] == 48
    assert report["differs"]


CHAT = """
import io, runpy, sys
sys.stdin = io.StringIO("Which colour is it?\\n")
runpy.run_module("llava_patch", run_name="__main__", alter_sys=True)
"""


def chat(checkpoint: Path, data: Path, folder: Path, *options: str) -> str:
    """Ask LLaVA's command-line chat one question; return what it prints after the question."""
    (folder / "chat.py").write_text(CHAT)
    words = ["llava.serve.cli", "--model-path", checkpoint, "--image-file", data / "red.png", "--device", "cpu"]
    words += [*options, "--conv-mode", "llava_v1", "--temperature", "0", "--max-new-tokens", "4"]
    printed = run_forked(folder / "chat.py", *words, printed=folder / "printed.txt")
    assert printed.rstrip().endswith("exit...")
    return printed.split("ASSISTANT: ", 1)[1]


def test_llavas_evaluation_and_ours(finetuned: Path, data: Path, tmp_path: Path) -> None:
    questions, out = tmp_path / "questions.jsonl", tmp_path / "answers.jsonl"
    lines = [
        {"question_id": i, "image": f"{c}.png", "text": "Which colour is it?"} for i, c in enumerate(("red", "blue"))
    ]
    questions.write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = ["--model-path", finetuned, "--question-file", questions, "--image-folder", data, "--answers-file", out]
    options = ["--conv-mode", "vicuna_v1", "--temperature", "0", "--max_new_tokens", "4"]
    words = ["-m", "llava_patch", "--cpu", "llava.eval.model_vqa_loader", *command, *options]
    run_forked(*words, printed=tmp_path / "printed.txt")
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["question_id"] for line in found] == [0, 1]
    assert all(isinstance(line["text"], str) for line in found)


def test_llavas_chat(finetuned: Path, data: Path, tmp_path: Path) -> None:
    said = chat(finetuned, data, tmp_path).split("USER: ", 1)[0]
    assert len(said) > 1  # four tokens of an untrained model, possibly all spaces


@WITH_BITS
@pytest.mark.parametrize("option", ["--load-4bit", "--load-8bit"])
def test_llavas_chat_in_few_bits(finetuned: Path, data: Path, option: str, tmp_path: Path) -> None:
    assert len(chat(finetuned, data, tmp_path, option).split("USER: ", 1)[0]) > 1


FEW_BITS = """
import json, sys
import llava_patch
llava_patch.install()
import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from llava.model.builder import load_pretrained_model
from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM
from transformers import BitsAndBytesConfig
path, how = sys.argv[1:]
if how.endswith("config"):
    settings = BitsAndBytesConfig(load_in_4bit=how[0] == "4", load_in_8bit=how[0] == "8")
    model = LlavaLlamaForCausalLM.from_pretrained(path, quantization_config=settings, device_map={"": "cpu"})
    model.get_vision_tower().load_model()
    assert settings.llm_int8_skip_modules is None  # the caller's settings stay as they are
else:
    _, model, _, _ = load_pretrained_model(
        path, None, "llava-tiny", load_4bit=how == "4", load_8bit=how == "8", device="cpu"
    )
tower = model.get_vision_tower().vision_tower
print(json.dumps({
    "quantized": [name for name, part in model.named_modules() if isinstance(part, (Linear4bit, Linear8bitLt))],
    "dtypes": sorted({str(part.dtype) for part in (*tower.parameters(), *model.get_model().mm_projector.parameters())}),
    "coordinates": str(tower.focus.initial_rois.weight.dtype),
    "repacks": [part.support_avx512bf16_for_cpu for part in model.modules() if isinstance(part, Linear4bit)],
}))
"""


@WITH_BITS
@pytest.mark.parametrize("how", ["4", "8", "4 config", "8 config"])
def test_only_the_language_model_is_in_few_bits(finetuned: Path, tmp_path: Path, how: str) -> None:
    """Loaded by LLaVA's builder, and with settings of one's own."""
    program = tmp_path / "program.py"
    program.write_text(FEW_BITS)
    printed = run_forked(program, finetuned, how, printed=tmp_path / "printed.txt")
    report = json.loads(printed.strip().splitlines()[-1])
    assert len(report["quantized"]) == 2 * 7
    assert all(name.startswith("model.layers.") for name in report["quantized"])
    assert set(report["dtypes"]) <= {"torch.float16", "torch.float32"}
    assert report["coordinates"] == "torch.float32"
    assert report["repacks"] == ([False] * 14 if how.startswith("4") else [])


def test_without_the_plugin_llava_reports_an_unknown_tower(finetuned: Path, tmp_path: Path) -> None:
    """docs/llava.md quotes the error. The shims stay, because LLaVA cannot be imported without them."""
    program = tmp_path / "program.py"
    program.write_text(
        "import sys, llava_patch; llava_patch.install(); import llava.model.llava_arch\n"
        "from llava_patch.compat import SHIMS\n"
        "import llava.model.multimodal_encoder.builder as builder, llava.model.llava_arch as arch\n"
        "arch.build_vision_tower = builder.build_vision_tower = builder.build_vision_tower.__wrapped__\n"
        "from llava.model.builder import load_pretrained_model\n"
        "load_pretrained_model(sys.argv[1], None, 'llava-tiny', device='cpu')\n"
    )
    printed = run_forked(program, finetuned, printed=tmp_path / "printed.txt", exitcode=1)
    assert "Unknown vision tower: sparseformer:" in printed
