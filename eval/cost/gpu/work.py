"""Task and results of a piece; the results are a JSON file that is complete after every row."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sparse_vlm.errors import one_line
from sparse_vlm.files import write_json


class Work:
    """Task of a piece, and its results so far.

    Args:
        output: JSON file to write.
        device: where to compute.
        tiny: use very small models, to check that everything runs.
        seconds: time limit.
    """

    def __init__(self, output: Path, device: torch.device, tiny: bool, seconds: float) -> None:
        self.device, self.tiny = device, tiny
        self._output, self._end = output, time.monotonic() + seconds
        self._result: dict[str, Any] = {"heading": [], "rows": [], "notes": [], "failures": [], "values": []}
        self.write()

    @property
    def left(self) -> float:
        """Seconds left until the time limit."""
        return self._end - time.monotonic()

    @property
    def rows(self) -> int:
        """Number of rows so far."""
        return len(self._result["rows"])

    def head(self, *heading: str) -> None:
        """Set the heading of the table."""
        self._result["heading"] = list(heading)
        self.write()

    def row(self, *cells: str, **values: Any) -> None:
        """Add a row of text, and the same numbers as JSON values."""
        self._result["rows"].append(list(cells))
        self._result["values"].append(values)
        self.write()

    def note(self, sentence: str) -> None:
        """Add a sentence below the table, e.g. about rows that were left out."""
        self._result["notes"].append(sentence)
        self.write()

    def fail(self, sentence: str) -> None:
        """Add a failure; the piece continues."""
        self._result["failures"].append(sentence)
        self.write()

    def write(self) -> None:
        """Write the results so far."""
        write_json(self._output, self._result)

    def attempt(self, label: str, run: Callable[[], None], needs: float = 0) -> None:
        """Run a part of the piece; errors are recorded, and the piece continues.

        Too little time or memory is a limit of the machine and becomes a note; any other error is a failure.

        Args:
            label: name of the part in the note or failure.
            run: adds the rows of the part.
            needs: expected seconds, if known.
        """
        if self.left <= needs:
            self.note(f"{label}: left out, there was no time for it.")
            return
        try:
            run()
        except torch.OutOfMemoryError:
            self.note(f"{label}: left out, there was not enough memory.")
        except Exception as error:  # from a compiler, a driver or a library; the other rows do not depend on it
            self.fail(f"{label}: {one_line(error)}")
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # free memory for the models of the next part
