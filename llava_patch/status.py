"""What `sparse-vlm llava status` prints: the LLaVA that is imported in this folder, and the patches in effect."""

import importlib
import importlib.metadata
import json
import os
import subprocess
import sys
import tomllib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import llava_patch
from llava_patch import startup
from llava_patch.compat import FAMILIES, SHIMS
from llava_patch.patches import TOWERS, state_of

TESTED = "1.2.2.post1"
INSTALL = f"pip install --no-deps llava-torch=={TESTED}"
MODULES = (*(f"llava.model.language_model.llava_{family}" for family in FAMILIES), "llava.train.train")
DISTRIBUTIONS = ("llava-torch", "llava")  # names of LLaVA's packages
# prints the file of llava's __init__ and its folders, as a new interpreter finds them
FIND = (
    "import importlib.util, json; spec = importlib.util.find_spec('llava'); "
    "print(json.dumps(spec and [spec.origin, [*(spec.submodule_search_locations or [])]]))"
)


@dataclass(frozen=True)
class Found:
    """What an interpreter imports as `llava`.

    Attributes:
        place: folder of the package, or file of a module.
        fault: why this is not LLaVA; None: it is.
    """

    place: Path
    fault: str | None


def find_llava(*flags: str) -> Found | None:
    """Find what a new interpreter imports as `llava` in this folder; None: nothing.

    A clone in the current folder or on PYTHONPATH precedes an installed package.

    Args:
        flags: options of the interpreter. With "-P" it ignores the current folder, as with a script in another one.
    """
    found = json.loads(_printed_by(*flags, "-c", FIND).strip().splitlines()[-1])
    if found is None:
        return None
    origin, folders = found
    place = Path(folders[0] if folders else origin).resolve()
    if origin is None:
        return Found(place, "a folder without __init__.py")
    known = (place / "model" / "llava_arch.py").is_file()
    return Found(place, None if known else "a package without model/llava_arch.py")


def _printed_by(*words: str) -> str:
    """Run Python without the plug-in, which would import torch, and return its output."""
    environment = os.environ | {startup.OFF_SWITCH: "0"}
    return subprocess.run(
        [sys.executable, *words], env=environment, stdout=subprocess.PIPE, text=True, check=True
    ).stdout


def describe() -> str:
    """Describe the installation. If there is a LLaVA, it is imported to find out which patches are in effect."""
    enabled = startup.startup_file().exists()
    switch = f" (switched off by {startup.OFF_SWITCH}=0)" if os.environ.get(startup.OFF_SWITCH) == "0" else ""
    lines = [
        f"enabled       {'yes, ' + str(startup.startup_file()) if enabled else 'no'}{switch}",
        f"transformers  {_version('transformers')}",
    ]
    found, by_scripts = find_llava(), find_llava("-P")
    if found is None:
        return "\n".join([*lines, f"LLaVA is not installed: {INSTALL}"])
    lines += [f"llava         {_llava_version(found.place)} (tested: {TESTED})", f"imported from {found.place}"]
    lines += [f"              instead of the installed {other}" for other in _hidden(found.place)]
    if by_scripts != found:
        others = "nothing" if by_scripts is None else by_scripts.place
        lines.append(
            "              by python -m MODULE in this folder. A script, such as python llava/train/train.py, imports "
            f"{others}: set PYTHONPATH=. to change that."
        )
    if found.fault is not None:
        return "\n".join([*lines, f"This is not LLaVA, but {found.fault}: start Python in another folder, or move it."])
    return "\n".join([*lines, *_patches(found.place)])


def _patches(folder: Path) -> list[str]:
    """Import the LLaVA in `folder`; describe the patches that concern it, and what cannot be imported."""
    sys.path.insert(0, str(folder.parent))
    llava_patch.install()
    failed: dict[str, list[str]] = {}
    for module in MODULES:
        if _has(folder, module) and (error := _error_of_import(module)):
            failed.setdefault(error, []).append(module)
    states = [(patch, state_of(patch)) for patch in (*TOWERS, *SHIMS) if _has(folder, patch.module)]
    lines = [
        f"{state:<13} {patch.module}.{patch.attribute} ({patch.serves}): {patch.purpose}"
        for patch, state in states
        if state is not None
    ]
    return lines + [f"cannot import {', '.join(modules)}: {error}" for error, modules in failed.items()]


def _has(folder: Path, module: str) -> bool:
    """Return whether the LLaVA in `folder` has a module. Modules of other packages are assumed to exist."""
    package, *path = module.split(".")
    return package != "llava" or folder.joinpath(*path).with_suffix(".py").is_file()


def _error_of_import(module: str) -> str | None:
    """Import a module; return its error, if any."""
    try:
        importlib.import_module(module)
    except Exception as error:  # any error of LLaVA's imports is worth reporting
        return f"{type(error).__name__}: {error}"
    return None


def _llava_version(folder: Path) -> str:
    """Version of the LLaVA in `folder`, and whether it is a clone."""
    for name, version, place in _installed():
        if place == folder:
            return f"{version} ({name})" if name != DISTRIBUTIONS[0] else version
    fork = "LLaVA-NeXT" if (folder / "model" / "multimodal_resampler").is_dir() else ""
    kind = f"a clone of {fork}" if fork else "a clone"
    project = folder.parent / "pyproject.toml"
    with suppress(OSError, tomllib.TOMLDecodeError, KeyError, TypeError):
        return f"{tomllib.loads(project.read_text(encoding='utf-8'))['project']['version']}, {kind}"
    return kind


def _hidden(folder: Path) -> list[str]:
    """Installed packages of LLaVA other than the one in `folder`."""
    return [
        f"{name} {version} in {place}" for name, version, place in _installed() if place != folder and place.is_dir()
    ]


def _installed() -> list[tuple[str, str, Path]]:
    """Name, version and folder of each installed package of LLaVA."""
    found = []
    for name in DISTRIBUTIONS:
        with suppress(importlib.metadata.PackageNotFoundError):
            package = importlib.metadata.distribution(name)
            found.append((name, package.version, Path(str(package.locate_file("llava"))).resolve()))
    return found


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed as a package"
