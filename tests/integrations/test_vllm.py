"""Model directories in vLLM, with the code that they carry: offline, and its OpenAI-compatible server.

Every token that vLLM chooses is the most likely one for the project's own model, or a rounding error less likely.
"""

import base64
import importlib.util
import io
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    LlamaConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from sparse_vlm.vlm.build import build_vlm
from sparse_vlm.vlm.chat import encode_prompt
from sparse_vlm.vlm.loading import load_vlm
from tests.ports import free_port
from tests.worded_vlm import TEMPLATE, worded_tokenizer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs the package vllm: run make test-vllm"),
]
# with the peculiarities of each: tied or own output layer, scaled embeddings, soft caps, a window
FAMILIES: dict[str, tuple[type[PreTrainedConfig], dict[str, Any]]] = {
    "llama": (LlamaConfig, {"tie_word_embeddings": False}),
    "qwen2": (Qwen2Config, {"tie_word_embeddings": True}),
    "qwen3": (Qwen3Config, {}),
    "gemma": (GemmaConfig, {}),
}
SIZES = {"hidden_size": 128, "intermediate_size": 96, "num_hidden_layers": 2, "initializer_range": 0.3}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}  # vLLM's smallest head
QUESTIONS = ["what color is the shape?", "does the image contain a circle?", "is it red?", "what shape is it?"]
BOX = (0.25, 0.25, 0.75, 1.0)
ROUNDING = {"float32": 1e-3, "bfloat16": 0.15}  # of logits, whose standard deviation is about 1
SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
}


def caches(folder: Path) -> dict[str, str]:
    """Settings that keep a directory's code and compiled programs inside `folder`."""
    return {"HF_HOME": str(folder / "hf"), "VLLM_CACHE_ROOT": str(folder / "vllm")}


class Asked(NamedTuple):
    """A question about images, with the number of visual tokens and the regions of each image."""

    question: str
    images: Sequence[Image.Image] = ()
    visual_tokens: int | None = None
    regions: Sequence[Any] = ()

    @property
    def messages(self) -> list[Any]:
        """For OpenAI's API."""
        urls = [{"type": "image_url", "image_url": {"url": data_url(image)}} for image in self.images]
        return [{"role": "user", "content": [*urls, {"type": "text", "text": self.question}]}]

    @property
    def options(self) -> dict[str, Any]:
        """For vLLM's processor."""
        boxes = [",".join(map(str, box)) for box in self.regions]
        count = {} if self.visual_tokens is None else {"visual_tokens": self.visual_tokens}
        return count | ({"image_regions": boxes} if boxes else {})


def data_url(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def build(folder: Path, family: str, encoder_dir: Path, aspect: str = "crop") -> Path:
    """Build a VLM with a random LLM of a family; return its directory."""
    tokenizer = worded_tokenizer()
    kind, special = FAMILIES[family]
    ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    known = {*kind.__dataclass_fields__, *kind.attribute_map}
    sizes = {name: value for name, value in (SIZES | HEADS).items() if name in known}
    torch.manual_seed(0)
    llm = AutoModelForCausalLM.from_config(kind(vocab_size=len(tokenizer), **sizes, **ends, **special))
    llm.save_pretrained(folder / "llm")
    tokenizer.save_pretrained(folder / "llm")
    build_vlm(encoder_dir, folder / "llm", folder / "tiny-vlm", chat_template=TEMPLATE, aspect=aspect)
    return folder / "tiny-vlm"


def ask_offline(directory: Path, dtype: str, batches: Sequence[Sequence[Asked]], folder: Path) -> list[list[list[int]]]:
    """Ask vLLM in another process. The questions of a batch have the same options."""
    asked = [{"messages": [one.messages for one in batch], "options": batch[0].options} for batch in batches]
    (folder / "asked.json").write_text(json.dumps({"directory": str(directory), "dtype": dtype, "batches": asked}))
    program = [sys.executable, str(Path(__file__).with_name("vllm_offline.py"))]
    result = subprocess.run(
        [*program, str(folder / "asked.json"), str(folder / "answers.json")],
        env=os.environ | SETTINGS | caches(folder) | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-6000:]
    return json.loads((folder / "answers.json").read_text())


@torch.inference_mode()
def check_choices(loaded: tuple[Any, Any], asked: Asked, tokens: Sequence[int], rounding: float) -> None:
    """Check that each token of an answer is the most likely one after those before it."""
    model, processor = loaded
    boxes = list(asked.regions)
    inputs = encode_prompt(
        processor, list(asked.images) or None, asked.question, visual_tokens=asked.visual_tokens, regions=boxes
    )
    prompt = inputs["input_ids"].shape[1]
    answer = torch.tensor([tokens])
    inputs["input_ids"] = torch.cat([inputs["input_ids"], answer], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    logits = model(**inputs.to(model.dtype)).logits[0, prompt - 1 : -1].float()
    short = logits.max(dim=-1).values - logits.gather(1, answer[0, :, None])[:, 0]
    assert len(tokens) == 8 or tokens[-1] == processor.tokenizer.eos_token_id
    assert short.max() <= rounding * logits.std(), f"{asked.question}: {short.tolist()}"


def check_offline(directory: Path, dtype: str, batches: Sequence[Sequence[Asked]], folder: Path) -> None:
    answers = ask_offline(directory, dtype, batches, folder)
    loaded = load_vlm(directory, getattr(torch, dtype))
    said = set()
    for batch, found in zip(batches, answers, strict=True):
        for asked, tokens in zip(batch, found, strict=True):
            check_choices(loaded, asked, tokens, ROUNDING[dtype])
            said.add(tuple(tokens))
    assert len(said) > len(batches), "the answers must differ between questions and images"


def batches_about(images: Sequence[Image.Image]) -> list[list[Asked]]:
    """Questions of different lengths about no image, one and several; then numbers of visual tokens, and regions."""
    plain = [Asked(question, images[:1]) for question in QUESTIONS]
    return [
        [*plain, Asked(QUESTIONS[0]), Asked(QUESTIONS[1], images), Asked(QUESTIONS[1], images[1:])],
        [Asked(QUESTIONS[0], images[:2], visual_tokens=3), Asked(QUESTIONS[1], images[1:2], visual_tokens=3)],
        [Asked(QUESTIONS[1], images[:1], visual_tokens=12)],
        [Asked(QUESTIONS[0], images[1:2], visual_tokens=4, regions=[BOX, (0.0, 0.0, 1.0, 0.5)])],
        [Asked(QUESTIONS[0], images[2:], regions=[BOX])],
    ]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_offline(encoder_dir: Path, shapes: list[Image.Image], tmp_path: Path, dtype: str) -> None:
    check_offline(build(tmp_path, "llama", encoder_dir), dtype, batches_about(shapes), tmp_path)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "llama"])
def test_families(encoder_dir: Path, shapes: list[Image.Image], tmp_path: Path, family: str) -> None:
    check_offline(build(tmp_path, family, encoder_dir), "float32", batches_about(shapes)[:2], tmp_path)


def test_native_aspect(encoder_dir: Path, shapes: list[Image.Image], tmp_path: Path) -> None:
    """Images of several sizes in one batch, on their canvases."""
    directory = build(tmp_path, "llama", encoder_dir, aspect="native")
    images = [shapes[0].resize(size) for size in ((90, 30), (40, 64), (64, 64))]
    check_offline(directory, "bfloat16", batches_about(images), tmp_path)


class Server(NamedTuple):
    client: Any
    directory: Path


@pytest.fixture(scope="module")
def server(encoder_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """vLLM's server with its defaults (bfloat16, compiled) but limited lengths; requests may have options."""
    import openai

    folder = tmp_path_factory.mktemp("served")
    directory, port = build(folder, "llama", encoder_dir), free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(directory)]
    command += ["--served-model-name", "tiny", "--port", str(port), "--trust-remote-code"]
    command += ["--trust-request-mm-kwargs"]
    command += ["--model-impl", "transformers", "--dtype", "bfloat16", "--max-model-len", "256", "--max-num-seqs", "8"]
    log = folder / "log"
    with log.open("w") as output:
        process = subprocess.Popen(command, env=os.environ | SETTINGS | caches(folder), stdout=output, stderr=output)
    try:
        wait_until_ready(process, log, port)
        with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="unused", max_retries=0) as client:
            yield Server(client, directory)
    finally:
        process.terminate()
        process.wait(60)


def wait_until_ready(process: subprocess.Popen[bytes], log: Path, port: int) -> None:
    end = time.monotonic() + 900
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()[-6000:]
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(1)
    raise AssertionError(log.read_text()[-6000:])


def ask(server: Server, asked: Asked, **more: Any) -> Any:
    body = {"return_token_ids": True} | ({"mm_processor_kwargs": asked.options} if asked.options else {})
    return server.client.chat.completions.create(
        model="tiny", messages=asked.messages, temperature=0, max_tokens=8, extra_body=body, **more
    )


def test_the_server_answers_many_at_once(server: Server, shapes: list[Image.Image]) -> None:
    asked = [one for batch in batches_about(shapes) for one in batch]
    with ThreadPoolExecutor(len(asked)) as users:
        replies = list(users.map(lambda one: ask(server, one), asked))
    loaded = load_vlm(server.directory, torch.bfloat16)
    for one, reply in zip(asked, replies, strict=True):
        choice = reply.choices[0]
        check_choices(loaded, one, choice.token_ids, ROUNDING["bfloat16"])
        assert choice.message.content == loaded[1].decode(choice.token_ids, skip_special_tokens=True)
    assert len({reply.choices[0].message.content for reply in replies}) > 3


def test_a_stream_is_the_answer(server: Server, shapes: list[Image.Image]) -> None:
    asked = Asked(QUESTIONS[0], shapes[:1])
    pieces = [piece.choices[0].delta.content or "" for piece in ask(server, asked, stream=True) if piece.choices]
    assert len(pieces) > 2
    assert "".join(pieces) == ask(server, asked).choices[0].message.content


def test_logprobs(server: Server, shapes: list[Image.Image]) -> None:
    asked = Asked(QUESTIONS[0], shapes[:1])
    choice = ask(server, asked, logprobs=True, top_logprobs=3).choices[0]
    assert len(choice.logprobs.content) == len(choice.token_ids)
    model, processor = load_vlm(server.directory, torch.bfloat16)
    inputs = encode_prompt(processor, list(asked.images), asked.question)
    with torch.inference_mode():
        expected = model(**inputs.to(model.dtype)).logits[0, -1].float().log_softmax(-1).max()
    assert choice.logprobs.content[0].logprob == pytest.approx(float(expected), abs=ROUNDING["bfloat16"])


@pytest.mark.parametrize(
    "options",
    [
        {"visual_tokens": 0},
        {"visual_tokens": 2.5},
        {"visual_tokens": 100000},
        {"visual_tokens": [3, 4]},
        {"image_regions": ["0.5,0,0.5,1"]},
        {"image_regions": ["left"]},
        {"num_image_tokens": 2},
    ],
)
def test_bad_requests_leave_the_server_alive(server: Server, shapes: list[Image.Image], options: Any) -> None:
    import openai

    asked = Asked(QUESTIONS[0], shapes[:1])
    with pytest.raises(openai.BadRequestError) as refused:
        server.client.chat.completions.create(
            model="tiny", messages=asked.messages, max_tokens=8, extra_body={"mm_processor_kwargs": options}
        )
    assert "disabled" not in str(refused.value)  # as they are without --trust-request-mm-kwargs
    assert ask(server, asked).choices[0].token_ids


def test_a_broken_image_is_a_bad_request(server: Server) -> None:
    import openai

    url = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGVsbG8="}}
    messages: Any = [{"role": "user", "content": [url, {"type": "text", "text": "what?"}]}]
    with pytest.raises(openai.BadRequestError):
        server.client.chat.completions.create(model="tiny", messages=messages, max_tokens=4)
