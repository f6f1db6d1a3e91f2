"""Use SparseFormer vision towers in the commands of haotian-liu/LLaVA.

Examples:
    sparse-vlm llava enable
    sparse-vlm llava status
    sparse-vlm llava disable
"""

import argparse
import importlib
import importlib.metadata
import os
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import llava_patch
from llava_patch import startup
from sparse_vlm.command_line import Commands
from sparse_vlm.command_line import describe as describe_docstring

TESTED = "1.2.2.post1"
MODULES = ("llava.model.language_model.llava_llama", "llava.model.language_model.llava_mistral", "llava.train.train")


def add_commands(commands: Commands) -> None:
    """Add `llava` to the parser of `sparse-vlm`."""
    description, examples = describe_docstring(__doc__)
    llava = commands.add_parser("llava", help=description.rstrip("."), description=description, examples=examples)
    actions = llava.add_subparsers(required=True, metavar="ACTION")
    for name, run, text in (
        ("enable", _enable, "Make LLaVA's commands in this Python accept --vision_tower sparseformer-…"),
        ("disable", _disable, "Undo `enable`"),
        ("status", _status, "Print the versions, whether LLaVA is enabled, and which shims are needed here"),
    ):
        action = actions.add_parser(name, help=text, description=f"{text}.", examples=f"  sparse-vlm llava {name}")
        action.set_defaults(run=run)


def _enable(arguments: argparse.Namespace) -> None:
    print(f"Enabled: {startup.enable()}")
    print(f"To switch it off, set {startup.OFF_SWITCH}=0 for one run, or run sparse-vlm llava disable.")


def _disable(arguments: argparse.Namespace) -> None:
    print("Disabled." if startup.disable() else "It was not enabled.")


def _status(arguments: argparse.Namespace) -> None:
    print(describe())


def describe() -> str:
    """Describe the installation. If LLaVA is installed, it is imported to find out which shims are in effect."""
    enabled = startup.startup_file().exists()
    switch = f" (switched off by {startup.OFF_SWITCH}=0)" if os.environ.get(startup.OFF_SWITCH) == "0" else ""
    lines = [
        f"enabled       {'yes, ' + str(startup.startup_file()) if enabled else 'no'}{switch}",
        f"transformers  {_version('transformers')}",
    ]
    llava = find_spec("llava")
    if llava is None:
        return "\n".join([*lines, "LLaVA is not installed: pip install --no-deps llava-torch==" + TESTED])
    assert llava.origin is not None
    folder = Path(llava.origin).parent
    lines += [f"llava         {_llava_version(folder)} (tested: {TESTED})", f"imported from {folder}"]
    from llava_patch.compat import SHIMS
    from llava_patch.patches import TOWERS, is_made

    llava_patch.install()
    failed = [sentence for sentence in map(_import, MODULES) if sentence]
    for patch in (*TOWERS, *SHIMS):
        state = "in effect" if is_made(patch) else "not needed"
        lines.append(f"{state:<13} {patch.module}.{patch.attribute} ({patch.serves}): {patch.purpose}")
    return "\n".join(lines + failed)


def _llava_version(folder: Path) -> str:
    """Version of the LLaVA in `folder`: a clone on PYTHONPATH precedes an installed package."""
    for name in ("llava-torch", "llava"):
        with suppress(importlib.metadata.PackageNotFoundError):
            installed = importlib.metadata.distribution(name)
            if Path(str(installed.locate_file("llava"))).resolve() == folder.resolve():
                return installed.version
    return "a clone"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed as a package"


def _import(module: str) -> str:
    """Import a module of LLaVA; return an error message if that fails, otherwise ""."""
    try:
        importlib.import_module(module)
    except Exception as error:  # any error of LLaVA's imports is worth reporting
        return f"cannot import {module}: {type(error).__name__}: {error}"
    return ""
