"""Every extra declares what the code that it serves imports (tests/packaging/rooms.py has the table)."""

import tomllib

import pytest

from tests.packaging.rooms import (
    CORE,
    OPTIONAL,
    ROOMS,
    ROOT,
    WITHOUT_DEPENDENCIES,
    declared,
    distribution_of,
    extra_of,
    imports_in,
    imports_of,
    loaded_with,
    modules,
    third_party,
)

EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]


def missing(packages: set[str], extra: str) -> set[str]:
    return {package for package in packages if distribution_of(package) not in declared(extra)}


@pytest.mark.parametrize("module", modules())
def test_importing_a_module_needs_only_its_extra(module: str) -> None:
    assert missing(loaded_with(module), extra_of(module)) == set()


@pytest.mark.parametrize("module", modules())
def test_imports_inside_functions_are_declared(module: str) -> None:
    _, later = imports_of(module)
    for package in third_party(later) - WITHOUT_DEPENDENCIES:
        assert missing({package}, OPTIONAL.get((module, package), extra_of(module))) == set()


def test_the_table_names_what_exists() -> None:
    assert set(ROOMS) <= set(modules())
    assert set(ROOMS.values()) | set(OPTIONAL.values()) <= {CORE, *EXTRAS}
    for (module, package), extra in OPTIONAL.items():
        assert package in third_party(imports_of(module)[1])
        assert missing({package}, extra_of(module)) == {package}, f"{extra} is not needed"


def test_the_core_brings_no_transformers() -> None:
    assert declared(CORE) == {"torch", "torchvision", "timm", "safetensors", "pillow", "numpy"}


def test_all_is_every_extra_for_users() -> None:
    users = set(EXTRAS) - {"all", "test", "docs", "lmms", "clip-benchmark"}
    assert declared("all") == frozenset().union(*map(declared, users))
    assert declared("all") < declared("test")


def test_imports_are_found_where_they_are() -> None:
    at_once, later = imports_in(
        "import a.b\nfrom . import c\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import d\n"
        "try:\n    import e\nexcept ImportError:\n    pass\nclass F:\n    import f\n    def g(self):\n        import h\n",
        "sparse_vlm.x",
    )
    assert third_party(at_once) == {"a", "e", "f"}
    assert "sparse_vlm.c" in at_once
    assert third_party(later) == {"h"}


def test_a_missing_declaration_would_be_found() -> None:
    assert missing({"torch", "PIL", "transformers"}, CORE) == {"transformers"}
    assert missing({"transformers", "open_clip", "yaml", "deepspeed"}, "bootstrap") == {"deepspeed"}
    assert missing({"transformers", "open_clip", "datasets", "webdataset", "peft"}, "train") == set()
