"""What every measurement of cost leaves: FILE.json with all runs, FILE.md with its tables, FILE.png."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from eval.tables import markdown_table, rich_table
from sparse_vlm.errors import UserError
from sparse_vlm.figures import save_figure
from sparse_vlm.files import check_output_files, write_json, write_text


class Section(NamedTuple):
    """A table for people.

    Attributes:
        title: what was measured, and how.
        rows: of text, the first one the heading.
        note: sentences below it.
    """

    title: str
    rows: Sequence[Sequence[str]]
    note: str = ""


def require_json_name(output: Path) -> None:
    """Checks the output before anything is measured.

    Raises:
        UserError: it does not end in .json, or one of the three files cannot be written.
    """
    if output.suffix != ".json":
        raise UserError(f"--output must end in .json, got {output}: the table and the figure lie beside it.")
    check_output_files({f"the {ending} of --output": output.with_suffix(ending) for ending in (".json", ".md", ".png")})


def publish(output: Path, values: Mapping[str, Any], sections: Sequence[Section], figure: Figure) -> None:
    """Writes everything, each file atomically, then prints the tables.

    Args:
        output: the .json file; the others have its name with .md and .png.
        values: its content.
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
        console.width = 160  # a log has no edge to wrap the cells at
    for section in sections:
        console.print(rich_table(section.rows, section.title, section.note))
    console.print(f"Written: {output}, and .md and .png beside it.")


def megabytes(count: float) -> str:
    """Bytes as MB (1e6) for a table."""
    return f"{count / 1e6:,.0f}"
