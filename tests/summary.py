"""`python -m tests.summary FOLDER`: one line for tests that ran in parts, from the JUnit files that pytest wrote."""

import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree


def summary(folder: Path) -> str:
    """How many tests passed, were skipped and failed in all parts together.

    Args:
        folder: with an .xml file of each part.
    """
    parts = [suite for file in folder.glob("*.xml") for suite in ElementTree.parse(file).iter("testsuite")]
    counts: Counter[str] = Counter()
    for part in parts:
        counts.update({name: int(part.attrib[name]) for name in ("tests", "skipped", "failures", "errors")})
    failed = counts["failures"] + counts["errors"]
    passed = counts["tests"] - counts["skipped"] - failed
    return f"{passed} passed, {counts['skipped']} skipped, {failed} failed in {len(parts)} parts"


if __name__ == "__main__":
    print(summary(Path(sys.argv[1])))
