"""The report of a measurement of cost: FILE.json with every run, FILE.md with the tables, FILE.png with the figure."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eval.tables import markdown_table, rich_table
from sparse_vlm.errors import UserError
from sparse_vlm.figures import save_figure
from sparse_vlm.files import check_output_files, write_json, write_text


class Section(NamedTuple):
    """A table of the report.

    Attributes:
        title: what was measured, in which setting.
        rows: cells as text; the first row is the heading.
        note: sentences below the table.
    """

    title: str
    rows: Sequence[Sequence[str]]
    note: str = ""


def check_report(output: Path, inputs: Iterable[str | Path] = ()) -> None:
    """Check, before anything is measured, that the report can be written and replaces no input."""
    if output.suffix != ".json":
        raise UserError(f"--output must end in .json, got {output}: the table and the figure go beside it.")
    files = {f"the {ending} of --output": output.with_suffix(ending) for ending in (".json", ".md", ".png")}
    check_output_files(files, inputs)


def publish(output: Path, values: Mapping[str, Any], sections: Sequence[Section], figure: Figure) -> None:
    """Write the report, each file atomically, and print its tables.

    Args:
        output: the .json file; the others get its name with .md and .png.
        values: content of the .json file.
        sections: the tables.
        figure: the figure.
    """
    from rich.console import Console

    texts = [f"### {section.title}\n\n{markdown_table(section.rows)}\n{section.note}" for section in sections]
    write_json(output, values)
    write_text(output.with_suffix(".md"), "\n\n".join(text.rstrip() for text in texts) + "\n")
    save_figure(figure, output.with_suffix(".png"))
    console = Console()
    if not console.is_terminal:
        console.width = 160  # a log file has no width to wrap the cells at
    for section in sections:
        console.print(rich_table(section.rows, section.title, section.note))
    console.print(f"Wrote {output}, and .md and .png beside it.")


def draw_stacked(axes: Axes, names: Sequence[str], parts: Mapping[str, Sequence[float]]) -> None:
    """Draw a horizontal bar for each name, from the first at the top; its parts, by their labels, lie end to end."""
    left = [0.0] * len(names)
    for label, values in parts.items():
        axes.barh(names, values, left=left, label=label)
        left = [start + value for start, value in zip(left, values, strict=True)]
    axes.tick_params(axis="y", labelsize=7)
    axes.invert_yaxis()
    axes.legend(fontsize=7)


def megabytes(count: float) -> str:
    """Format bytes as MB (1e6 bytes)."""
    return f"{count / 1e6:,.0f}"
