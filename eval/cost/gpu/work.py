"""What a piece is given, and what it leaves: a JSON file that is whole after every row."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sparse_vlm.errors import one_line
from sparse_vlm.files import write_json


class Work:
    """A piece's task, and its result so far.

    Args:
        output: the JSON file.
        device: where to compute.
        tiny: whether to compute something very small, to see that it runs.
        seconds: to spend.
    """

    def __init__(self, output: Path, device: torch.device, tiny: bool, seconds: float) -> None:
        self.device, self.tiny = device, tiny
        self._output, self._end = output, time.monotonic() + seconds
        self._result: dict[str, Any] = {"heading": [], "rows": [], "notes": [], "failures": [], "values": []}
        self.write()

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self._end - time.monotonic()

    @property
    def rows(self) -> int:
        """Rows so far."""
        return len(self._result["rows"])

    def head(self, *heading: str) -> None:
        """Names the table's columns."""
        self._result["heading"] = list(heading)
        self.write()

    def row(self, *cells: str, **values: Any) -> None:
        """Adds a row for people, and its numbers for programs."""
        self._result["rows"].append(list(cells))
        self._result["values"].append(values)
        self.write()

    def note(self, sentence: str) -> None:
        """Adds a sentence below the table, e.g. about what was left out."""
        self._result["notes"].append(sentence)
        self.write()

    def fail(self, sentence: str) -> None:
        """Adds something that is wrong; the piece goes on."""
        self._result["failures"].append(sentence)
        self.write()

    def write(self) -> None:
        """Writes the result so far."""
        write_json(self._output, self._result)

    def attempt(self, label: str, run: Callable[[], None], needs: float = 0) -> None:
        """Runs a part of the piece; what goes wrong in it is written down, and the rest goes on.

        Too little time or memory is a limit of the machine; anything else is a failure.

        Args:
            label: of the part, for a sentence.
            run: adds its rows.
            needs: seconds that it will take, as far as that is known.
        """
        if self.left <= needs:
            self.note(f"{label}: left out, there was no time for it.")
            return
        try:
            run()
        except torch.OutOfMemoryError:
            self.note(f"{label}: left out, the memory does not suffice.")
        except Exception as error:  # of a compiler, a driver, a library: the other rows do not depend on it
            self.fail(f"{label}: {one_line(error)}")
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # for the next part's models
