"""Pieces that measure: the machine, vision towers, and language models with visual tokens."""

import importlib.metadata
import platform
import shutil
import statistics
import subprocess
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from eval.cost import train_step
from eval.cost.gpu.work import Work
from eval.cost.measurement import measure
from eval.cost.report import megabytes
from eval.cost.runtimes import Setting, build
from sparse_vlm.devices import has_bfloat16
from sparse_vlm.dtypes import name_of
from sparse_vlm.measure.llms import open_llm
from sparse_vlm.measure.timing import gmacs_of, matmul, take_turns
from sparse_vlm.measure.timing import machine as machine_of
from sparse_vlm.measure.towers import Tower, open_tower

TOWERS = (
    "sparseformer-clip-l",
    "timm:vit_large_patch14_clip_quickgelu_224",
    "timm:vit_large_patch14_clip_quickgelu_336",
    "sparseformer-clip-b",
    "timm:vit_so400m_patch14_siglip_384",
)
TINY_TOWERS = ("sparseformer-clip-b@64", "timm:vit_tiny_patch16_224@32")
BATCHES = (1, 8, 64, 256)
VISUAL_TOKENS = (16, 64, 576)
PROMPT = 64  # text tokens after the visual ones
PACKAGES = ("torch", "triton", "timm", "transformers", "accelerate", "peft", "deepspeed", "bitsandbytes", "flash-attn")


def machine(work: Work) -> None:
    """Describe the machine and measure the speed of its matrix products."""
    work.head("what", "value")
    for name, value in machine_of(work.device).items():
        work.row(name, str(value), name=name, value=value)
    for name, value in {"python": platform.python_version(), **_packages(), **_gpu(work.device)}.items():
        work.row(name, value, name=name, value=value)
    for dtype in (torch.bfloat16, torch.float32):
        run, operations = matmul(dtype, work.device)
        (seconds,) = take_turns([run], 1 if work.tiny else 10, work.device)
        flops = operations / statistics.median(seconds)
        name = f"matrix product, {name_of(dtype)}"
        work.row(name, f"{flops / 1e12:,.3g} TFLOP/s", name=name, value=flops)


def _packages() -> dict[str, str]:
    versions = {}
    for name in PACKAGES[1:]:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def _gpu(device: torch.device) -> dict[str, str]:
    if device.type != "cuda":
        return {}
    properties = torch.cuda.get_device_properties(device)
    found = {
        "GPU memory": f"{properties.total_memory / 2**30:.1f} GiB",
        "compute capability": f"{properties.major}.{properties.minor}",
        "CUDA of torch": str(torch.version.cuda),
        "bfloat16": "yes" if has_bfloat16(device) else "no",
    }
    program = shutil.which("nvidia-smi")
    if program is not None:
        query = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
        done = subprocess.run(query, capture_output=True, text=True, check=False, timeout=30)
        lines = done.stdout.split()
        found["driver"] = lines[0] if done.returncode == 0 and lines else "unknown to nvidia-smi"
    return found


def encoders(work: Work) -> None:
    """Measure images per second of all towers, eager and from CUDA graphs; the towers of a batch take turns."""
    _head_of_towers(work)
    towers = _towers(work)
    models = {mode: _built(work, towers, mode) for mode in (("eager", "optimized") if _on_cuda(work) else ("eager",))}
    for batch in (1, 2) if work.tiny else BATCHES:
        for mode in models:
            work.attempt(f"{mode}, batch {batch}", partial(_measure_towers, work, towers, models[mode], batch, mode))


def compiled(work: Work) -> None:
    """Measure images per second with torch.compile, tower by tower; each is recompiled for each batch size."""
    _head_of_towers(work)
    longest = 0.0
    for batch in (1,) if work.tiny else (1, 64, 8, 256):
        for tower in _towers(work)[-1:] if work.tiny else _towers(work):
            before = work.left
            run = partial(_measure_compiled, work, tower, batch)
            work.attempt(f"compiled, batch {batch}, {tower}", run, needs=1.3 * longest)
            longest = max(longest, before - work.left)


def _measure_compiled(work: Work, tower: Tower, batch: int) -> None:
    _measure_towers(work, [tower], _built(work, [tower], "compiled"), batch, "compiled")


def _towers(work: Work) -> list[Tower]:
    return [open_tower(name) for name in (TINY_TOWERS if work.tiny else TOWERS)]


def _built(work: Work, towers: Sequence[Tower], mode: str) -> list[nn.Module]:
    with work.device:  # draw random weights on the device; a CPU takes minutes
        return [build(tower, name_of(_dtype(work)), mode, work.device) for tower in towers]


def _head_of_towers(work: Work) -> None:
    work.head("tower", "batch", "mode", "tokens", "GMAC", "ms", "images/s", "of matmul", "MB beyond weights")


def _measure_towers(work: Work, towers: Sequence[Tower], models: Sequence[nn.Module], batch: int, mode: str) -> None:
    setting = Setting(torch.get_num_threads(), batch, name_of(_dtype(work)), mode)
    result = measure("gpu", towers, models, setting, work.device, 2 if work.tiny else 10)
    for row in result.as_json()["towers"]:
        tower = row["tower"]
        numbers = {name: value for name, value in row.items() if name != "tower"}
        work.row(
            f"{tower['name']}@{tower['image_size']}",
            str(batch),
            mode,
            str(tower["tokens"]),
            f"{tower['gmacs']:.1f}",
            f"{1e3 * row['median_seconds']:.2f}",
            f"{row['images_per_second']:,.0f}",
            f"{row['share_of_matmul']:.1%}",
            megabytes(row["peak_bytes"]),
            tower=tower,
            batch=batch,
            mode=mode,
            dtype=setting.dtype,
            matmul_flops=result.matmul_flops,
            **numbers,
        )


def prefill(work: Work) -> None:
    """Time the first token without the vision tower: projector, LLM on visual tokens and prompt, choice of token."""
    work.head("LLM", "visual tokens", "prompt tokens", "ms", "GMAC")
    for name in _llms(work):
        work.attempt(name, partial(_measure_prefills, work, name))


def _measure_prefills(work: Work, name: str) -> None:
    llm = open_llm(name)
    with work.device:
        model = llm.load(_dtype(work)).to(work.device)
        width = llm.config.hidden_size  # projector as `sparse-vlm build` makes it, for a ViT-L's 1,024 channels
        projector = nn.Sequential(nn.LayerNorm(1024), nn.Linear(1024, width), nn.GELU(), nn.Linear(width, width))
        projector.to(work.device, _dtype(work))
        words = torch.randint(llm.config.vocab_size, (1, PROMPT))
        visual = {count: torch.randn(1, count, 1024, dtype=_dtype(work)) for count in VISUAL_TOKENS}

    def first_token(tokens: Tensor) -> Tensor:
        embedded = torch.cat([projector(tokens), model.get_input_embeddings()(words)], dim=1)
        return model(inputs_embeds=embedded, use_cache=True, logits_to_keep=1).logits[0, -1].argmax()

    runs = [partial(first_token, tokens) for tokens in visual.values()]
    with torch.inference_mode():
        seconds = take_turns(runs, 2 if work.tiny else 10, work.device)
        for count, run, times in zip(visual, runs, seconds, strict=True):
            median, gmacs = statistics.median(times), gmacs_of(run)
            numbers = {"llm": name, "visual_tokens": count, "prompt_tokens": PROMPT, "seconds": times, "gmacs": gmacs}
            work.row(name, str(count), str(PROMPT), f"{1e3 * median:.2f}", f"{gmacs:,.0f}", **numbers)


def step(work: Work) -> None:
    """Measure training steps: with frozen LLMs, as in the alignment, and with AdamW on all weights."""
    work.head("LLM", "what trains", "visual tokens", "text tokens", "ms", "peak MB")
    small, large = _llms(work)
    for name, frozen in ((small, True), (large, True), (small, False), (large, False)):
        what = "the projector in front" if frozen else "all weights"
        work.attempt(f"{name}, {what}", partial(_measure_steps, work, name, what, frozen))


def _measure_steps(work: Work, name: str, what: str, frozen: bool) -> None:
    with work.device:
        llm, dtype = open_llm(name), _dtype(work)
        repeats = 1 if work.tiny else 5
        costs, held = train_step.measure(llm, VISUAL_TOKENS, PROMPT, 1, dtype, work.device, repeats, frozen)
    for cost in costs:
        peak = held + cost.peak_bytes
        numbers = {"llm": name, "frozen": frozen, "visual_tokens": cost.visual_tokens, "text_tokens": PROMPT}
        cells = (str(cost.visual_tokens), str(PROMPT), f"{1e3 * cost.median:.1f}", megabytes(peak))
        work.row(name, what, *cells, **numbers, seconds=cost.seconds, held_bytes=held, peak_bytes=peak)


def _llms(work: Work) -> tuple[str, str]:
    return ("tiny", "tiny") if work.tiny else ("tinyllama-1.1b", "vicuna-7b")


def _on_cuda(work: Work) -> bool:
    return work.device.type == "cuda"


def _dtype(work: Work) -> torch.dtype:
    return torch.bfloat16 if has_bfloat16(work.device) else torch.float32
