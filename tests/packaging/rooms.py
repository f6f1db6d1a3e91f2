"""The extra that each part of the code needs, and the packages that each extra declares in pyproject.toml.

Needs only the standard library: `tests.packaging.try_extra` runs in environments without pytest.
"""

import re
import sys
import tomllib
from functools import cache

from tests.imports import ROOT, TOP, imports_of, modules, within

CORE = "core"  # what `pip install .` brings

# The longest prefix of a module's name decides which extra it needs.
ROOMS: dict[str, str] = {
    "sparse_vlm": CORE,
    "sparse_vlm.bootstrap.clip": "bootstrap",
    "sparse_vlm.bootstrap.teachers.open_clip": "bootstrap",
    "sparse_vlm.bootstrap.teachers.open_clip_weights": "bootstrap",
    "sparse_vlm.cli.streaming": "vlm",
    "sparse_vlm.cli.terminal": "vlm",
    "sparse_vlm.data.conversations": "train",
    "sparse_vlm.data.images": "bootstrap",
    "sparse_vlm.data.tar_shards": "bootstrap",
    "sparse_vlm.encoder.runtime.export": "export",
    "sparse_vlm.integrations.lmms_eval": "lmms",
    "sparse_vlm.integrations.vlmevalkit": "vlmevalkit",
    "sparse_vlm.measure.llms": "vlm",
    "sparse_vlm.draw": "figures",
    "sparse_vlm.figures": "figures",
    "sparse_vlm.vlm": "vlm",
    "sparse_vlm.vlm.serving": "serve",
    "llava_patch": "llava",
    "train": "train",
    "train.bootstrap": "bootstrap",
    "train.finetune": "bootstrap",
    "train.quickstart": "quickstart",
    "train.stages": "bootstrap",
    "train.vision": "bootstrap",
    "eval": "eval",
    "demo": "demo",
}

# Imports inside functions that another extra serves than the module's own: optional features.
OPTIONAL: dict[tuple[str, str], str] = {
    ("sparse_vlm.bootstrap.zero_shot", "open_clip"): "bootstrap",
    ("sparse_vlm.cli.chat", "transformers"): "vlm",
    ("sparse_vlm.cli.serve", "transformers"): "vlm",
    ("sparse_vlm.devices", "psutil"): "eval",
    ("sparse_vlm.hub.transfer", "huggingface_hub"): "vlm",
    ("sparse_vlm.videos.files", "av"): "video",
    ("sparse_vlm.measure.towers", "open_clip"): "bootstrap",
    ("sparse_vlm.vlm.language.gguf_files", "gguf"): "quickstart",
    ("sparse_vlm.vlm.language.quantization", "bitsandbytes"): "train",
    ("sparse_vlm.vlm.export.runtime", "onnxruntime"): "export",
    ("sparse_vlm.vlm.dense.clip", "open_clip"): "bootstrap",
    ("sparse_vlm.vlm.vision", "deepspeed"): "train",
    ("train.stages.stage", "deepspeed"): "train",
    ("train.studies.videos.clips", "av"): "video",
    ("eval.cost.gpu.checks", "pytest"): "test",
    ("eval.cost.runtimes", "onnxruntime"): "export",
    ("eval.encoders.clip_benchmark", "clip_benchmark"): "clip-benchmark",
}

# Installed with --no-deps, so no extra can declare them.
WITHOUT_DEPENDENCIES = {"llava"}

# Distributions that are named otherwise than the package that they install.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "open_clip": "open-clip-torch",
    "sklearn": "scikit-learn",
    "vlmeval": "ms-vlmeval",
    "yaml": "pyyaml",
}


def extra_of(module: str) -> str:
    """The extra that serves a module."""
    return ROOMS[max((room for room in ROOMS if within(module, room)), key=len)]


def third_party(names: frozenset[str]) -> set[str]:
    """The top-level packages among imported names that are neither Python's nor the project's."""
    return {name.split(".")[0] for name in names} - sys.stdlib_module_names - {*TOP, "tests"}


def loaded_with(module: str) -> set[str]:
    """Third-party packages that importing a module imports, through all modules of the project on the way."""
    seen: set[str] = set()
    found: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in seen or name not in modules():
            continue
        seen.add(name)
        at_once = imports_of(name).at_once
        found |= third_party(at_once)
        waiting += [*at_once, name.rpartition(".")[0]]  # a module's package is imported before it
    return found


@cache
def declared(extra: str) -> frozenset[str]:
    """Distributions that an extra installs by pyproject.toml, the core's and those of extras inside it included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = set()
    for requirement in project["dependencies"] + project["optional-dependencies"].get(extra, []):
        name = distribution_in(requirement)
        inner = re.search(r"\[(.*)\]", requirement)
        found |= {name} if name != "sparse-vlm" or inner is None else set()
        for part in inner[1].split(",") if inner and name == "sparse-vlm" else []:
            found |= declared(part.strip())
    return frozenset(found)


def distribution_in(requirement: str) -> str:
    """The normalized name at the beginning of a requirement."""
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match is not None
    return normalized(match[0])


def distribution_of(package: str) -> str:
    """The distribution that installs an imported package."""
    return normalized(DISTRIBUTIONS.get(package, package))


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
