"""Every extra declares what the code that it serves imports (tests/packaging/rooms.py has the table)."""

import re
import tomllib
from itertools import chain

from tests.imports import ROOT, imports_in, imports_of, modules
from tests.packaging.rooms import (
    CORE,
    OPTIONAL,
    ROOMS,
    WITHOUT_DEPENDENCIES,
    declared,
    distribution_in,
    distribution_of,
    extra_of,
    loaded_with,
    normalized,
    third_party,
)

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]

# Older versions that tests were run with by hand: the core's together, the others together beside constraints.txt.
OLDER = {
    "torch": "2.6.0",
    "torchvision": "0.21.0",
    "safetensors": "0.4.5",
    "pillow": "10.1.0",
    "numpy": "1.26.0",
    "datasets": "4.0.0",
    "fsspec": "2024.6.0",
    "matplotlib": "3.9.0",
    "ms-vlmeval": "0.0.20",
    "open-clip-torch": "3.0.0",
    "packaging": "24.0",
    "psutil": "5.9.8",
    "rich": "13.7.0",
    "tqdm": "4.66.0",
}


def missing(packages: set[str], extra: str) -> set[str]:
    return {package for package in packages if distribution_of(package) not in declared(extra)}


def test_importing_a_module_needs_only_its_extra() -> None:
    lacking = {module: missing(loaded_with(module), extra_of(module)) for module in modules()}
    assert {module: packages for module, packages in lacking.items() if packages} == {}


def test_imports_inside_functions_are_declared() -> None:
    later = {(module, package) for module in modules() for package in third_party(imports_of(module).later)}
    lacking = {
        (module, package)
        for module, package in later
        if package not in WITHOUT_DEPENDENCIES and missing({package}, OPTIONAL.get((module, package), extra_of(module)))
    }
    assert lacking == set()


def test_the_table_names_what_exists() -> None:
    assert set(ROOMS) <= set(modules())
    assert set(ROOMS.values()) | set(OPTIONAL.values()) <= {CORE, *EXTRAS}
    for (module, package), extra in OPTIONAL.items():
        assert package in third_party(imports_of(module).later)
        assert missing({package}, extra_of(module)) == {package}, f"{extra} is not needed"


def test_the_core_brings_no_transformers() -> None:
    assert declared(CORE) == {"torch", "torchvision", "timm", "safetensors", "pillow", "numpy"}


def test_all_is_every_extra_for_users() -> None:
    users = set(EXTRAS) - {"all", "test", "docs", "lmms", "clip-benchmark", "vlmevalkit"}
    assert declared("all") == frozenset().union(*map(declared, users))
    assert declared("all") < declared("test")


def test_imports_are_found_where_they_are() -> None:
    imports = imports_in(
        """
import a.b
from . import c
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    import d
try:
    import e
except ImportError:
    pass
class F:
    import f
    def g(self):
        import h
""",
        "sparse_vlm",
    )
    assert third_party(imports.at_once) == {"a", "e", "f"}
    assert "sparse_vlm.c" in imports.at_once
    assert third_party(imports.later) == {"h"}
    assert third_party(imports.never) == {"d"}


def test_a_missing_declaration_would_be_found() -> None:
    assert missing({"torch", "PIL", "transformers"}, CORE) == {"transformers"}
    assert missing({"transformers", "open_clip", "yaml", "deepspeed"}, "bootstrap") == {"deepspeed"}
    assert missing({"transformers", "open_clip", "datasets", "webdataset", "peft"}, "train") == set()


def versions_that_ran() -> dict[str, set[str]]:
    """Distribution -> the versions that tests ran with: today's, those of LLaVA's time, and those of OLDER."""
    versions: dict[str, set[str]] = {name: {version} for name, version in OLDER.items()}
    integrations = [f"tests/integrations/{name}-packages.txt" for name in ("lmms", "vllm")]
    for file in ("constraints.txt", "llava_patch/constraints-4.37.txt", *integrations):
        for line in (ROOT / file).read_text(encoding="utf-8").splitlines():
            name, _, version = line.partition("==")
            if version:
                versions.setdefault(normalized(name), set()).add(version)
    return versions


def test_lower_bounds_are_versions_that_ran() -> None:
    versions = versions_that_ran()
    for requirement in {*PROJECT["dependencies"], *chain(*EXTRAS.values())}:
        for bound in re.findall(r">=([\d.]+)", requirement):
            ran = versions[distribution_in(requirement)]
            assert any(f"{version}.".startswith(f"{bound}.") for version in ran), f"{requirement}: {ran} ran"


# pip install 'sparse-vlm[EXTRA]', pip install '.[EXTRA]', optional_import(…, "EXTRA")
NAMED = re.compile(r"""(?:sparse-vlm|["']\.)\[([\w,-]+)\]|optional_import\([^()]*, "([\w-]+)"\)""")


def named_extras(text: str) -> set[str]:
    return {extra for match in NAMED.finditer(text) for extra in (match[1] or match[2]).split(",")}


def test_extras_that_messages_and_pages_name_exist() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    found = {file: named_extras(file.read_text(encoding="utf-8")) for file in [*modules().values(), *pages]}
    assert {file: names - set(EXTRAS) for file, names in found.items() if names - set(EXTRAS)} == {}
    assert named_extras("pip install 'sparse-vlm[vlm]' or '.[a,b]'; optional_import(\"Drawing\", \"figures\"):") == {
        *("vlm", "a", "b", "figures")
    }
