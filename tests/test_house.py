"""The files of the project: each is on the map in docs/architecture.md, and folders and files stay small."""

import re
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
TOP = ("sparse_vlm", "llava_patch", "train", "eval", "demo")
FILES = sorted(file.relative_to(ROOT) for top in TOP for file in (ROOT / top).rglob("*.py"))
MAX_FILES = 15  # in a folder
MAX_LINES = 300  # in a file
NAME = re.compile(r"[\w.-]+\.\w+|[\w./-]+/")  # a file, or a folder with its slash


def layout(page: str) -> set[Path]:
    """Paths in the tree of a page: the first fenced block below "## Layout".

    Each level is indented by two spaces. A line begins with a name or several, divided by commas, and two spaces divide
    them from their description; a folder ends in "/". A line that does not begin with names continues a description.
    """
    _, _, section = page.partition("\n## Layout\n")
    tree = section.split("```")[1] if section.count("```") >= 2 else ""
    parents: list[tuple[int, Path]] = []
    found = set()
    for line in filter(str.strip, tree.splitlines()):
        indentation = len(line) - len(line.lstrip())
        names = re.split(r",\s*", re.split(r"\s{2,}", line.strip())[0])
        if not all(map(NAME.fullmatch, names)):
            continue
        parents = [(depth, folder) for depth, folder in parents if depth < indentation]
        above = parents[-1][1] if parents else Path()
        found |= {above / name for name in names}
        if names[-1].endswith("/"):
            parents.append((indentation, above / names[-1]))
    return found


MAP = layout((ROOT / "docs/architecture.md").read_text(encoding="utf-8"))


def test_every_file_is_on_the_map() -> None:
    missing = [file for file in FILES if file.name != "__init__.py" and file not in MAP]
    assert missing == [], f"Add to the tree in docs/architecture.md: {', '.join(map(str, missing))}"


def test_every_name_on_the_map_exists() -> None:
    assert MAP
    gone = sorted(path for path in MAP if not (ROOT / path).exists())
    assert gone == [], f"Remove from the tree in docs/architecture.md: {', '.join(map(str, gone))}"


def test_a_folder_holds_few_files() -> None:
    counts = Counter(file.parent for file in FILES)
    assert {folder: count for folder, count in counts.items() if count > MAX_FILES} == {}


def test_a_file_is_short() -> None:
    lines = {file: len((ROOT / file).read_text(encoding="utf-8").splitlines()) for file in FILES}
    assert {file: count for file, count in lines.items() if count > MAX_LINES} == {}


def test_the_tree_is_read() -> None:
    page = """# Map

## Layout

```
a/                 a package, described in a line
                   continued on the next line, with words
  b/               b.py is not here
    c.py, d.py     two files
  e.py             after the folder b
f/g/               a folder in a folder
  h.json
```

```
i.py               of another block
```
"""
    assert layout(page) == {Path(name) for name in ("a", "a/b", "a/b/c.py", "a/b/d.py", "a/e.py", "f/g", "f/g/h.json")}
    assert layout("# Map without a tree") == set()
