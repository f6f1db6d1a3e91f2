"""Imports of the project's modules, read from their source. Needs only the standard library."""

import ast
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
TOP = ("sparse_vlm", "llava_patch", "train", "eval", "demo")


class Imports(NamedTuple):
    """Full names of imported modules and of names imported from them, by the time of the import."""

    at_once: frozenset[str]  # when the module itself is imported
    later: frozenset[str]  # in functions
    never: frozenset[str]  # for type checkers

    @property
    def all(self) -> frozenset[str]:
        return self.at_once | self.later | self.never


@cache
def modules() -> dict[str, Path]:
    """Map the full name of every module of the project to its file."""
    return {module_name(file): file for top in TOP for file in sorted((ROOT / top).rglob("*.py"))}


def module_name(file: Path) -> str:
    """Return the full name of the module in a file."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def imports_of(module: str) -> Imports:
    """Read the imports of a module of the project."""
    file = modules()[module]
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    return imports_in(file.read_text(encoding="utf-8"), package)


def imports_in(source: str, package: str) -> Imports:
    """Read the imports of source code.

    Args:
        source: source code of a module.
        package: full name of the package that relative imports start from.
    """
    at_once: set[str] = set()
    later: set[str] = set()
    never: set[str] = set()

    def visit(node: ast.AST, found: set[str]) -> None:
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            levels = package.split(".")
            base = levels[: len(levels) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            found.update([origin, *(f"{origin}.{alias.name}" for alias in node.names)])
        elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            found = never
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found = later
        for child in ast.iter_child_nodes(node):
            visit(child, found)

    visit(ast.parse(source), at_once)
    return Imports(frozenset(at_once), frozenset(later), frozenset(never))


def within(name: str, module: str) -> bool:
    """Check whether a full name is a module or something in it."""
    return f"{name}.".startswith(f"{module}.")
