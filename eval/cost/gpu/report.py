"""The report of `python -m eval.cost.gpu`, rewritten after every piece."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.tables import markdown_table
from sparse_vlm.files import write_json, write_text


def write_report(folder: Path, about: Mapping[str, str], results: Sequence[Mapping[str, Any]]) -> None:
    """Write report.json and report.md, each atomically.

    Args:
        folder: folder for both files.
        about: command, date and so on.
        results: one for each piece that ended, with "name", "title", "status" ("passed", "failed", "stopped", "left
            out"), "reason", "seconds", and the values that `Work` wrote, if any.
    """
    write_json(folder / "report.json", {**about, "pieces": list(results)})
    parts = ["# GPU report\n", *(f"- {name}: {value}" for name, value in about.items()), ""]
    summary = [["piece", "result", "seconds", "why"]]
    summary += [[each["name"], each["status"], f"{each['seconds']:.0f}", _cell(each["reason"])] for each in results]
    parts += [markdown_table(summary)]
    for each in results:
        if each.get("rows") or each.get("failures") or each.get("notes"):
            parts.append(_section(each))
    write_text(folder / "report.md", "\n".join(parts).rstrip() + "\n")


def _section(result: Mapping[str, Any]) -> str:
    lines = [f"## {result['title']}\n"]
    if result["rows"]:
        lines.append(markdown_table([result["heading"], *([_cell(cell) for cell in row] for row in result["rows"])]))
    lines += [f"- **{_cell(sentence)}**" for sentence in result["failures"]]
    lines += [f"- {_cell(sentence)}" for sentence in result["notes"]]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """Put text on one line and escape it for a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")
