"""Imports every module that an extra serves, in an environment that has this extra alone; see `make test-extras`.

python -m tests.packaging.try_extra vlm
"""

import importlib
import sys

from tests.imports import ROOT, TOP, modules
from tests.packaging.rooms import extra_of

# Packages of an extra beyond the project's own imports, for commands that are not Python imports.
PROMISED = {"docs": ["mkdocs", "material"], "train": ["tensorboard"], "quickstart": ["easy_vqa", "gguf"]}


def main(extra: str) -> int:
    # The installed package comes first, so that a file that the wheel lacks is missed. The clone has train, eval, demo.
    sys.path = [*(entry for entry in sys.path if entry not in ("", str(ROOT))), str(ROOT)]
    for name in [name for name in sys.modules if name.split(".")[0] in TOP]:
        del sys.modules[name]
    names = [name for name in modules() if extra_of(name) == extra and not name.endswith("__main__")]
    failed = [error for error in map(problem, [*names, *PROMISED.get(extra, [])]) if error]
    print(f"{extra}: {len(names)} modules imported, {len(failed)} failed", *failed, sep="\n  ")
    return 1 if failed or not (names or extra in PROMISED) else 0


def problem(name: str) -> str:
    """Imports a module; what goes wrong, "" if nothing."""
    try:
        importlib.import_module(name)
    except Exception as error:
        return f"{name}: {type(error).__name__}: {error}"
    return ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
