"""The pieces of `python -m eval.cost.gpu`, with the packages that each needs and its time limit."""

import importlib.metadata
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[3]
VLM = ("vlm:transformers", "train:accelerate")


@dataclass(frozen=True)
class Piece:
    """A part of the report, which runs in a process of its own.

    Attributes:
        name: name for --only and --skip.
        title: title of its section.
        function: "module:function"; the function takes a `Work`.
        seconds: time limit.
        needs: packages: "EXTRA:NAME" in the version that pyproject.toml's extra asks for, or "NAME" in any version.
    """

    name: str
    title: str
    function: str
    seconds: int
    needs: tuple[str, ...] = ()

    @property
    def is_check(self) -> bool:
        """True if the piece checks results; it must then run to its end."""
        return "test:pytest" in self.needs


def _check(name: str, title: str, seconds: int, *needs: str) -> Piece:
    return Piece(name, title, f"eval.cost.gpu.checks:{name}", seconds, ("test:pytest", *needs))


# Most useful first: if the time does not suffice, the last pieces are left out.
PIECES: tuple[Piece, ...] = (
    Piece("machine", "The machine", "eval.cost.gpu.tables:machine", 45),
    _check("encoder", "Checks of the encoder", 60),
    _check("graphs", "Checks of CUDA graphs", 60),
    Piece("encoders", "Encoders: eager and from CUDA graphs", "eval.cost.gpu.tables:encoders", 90),
    _check("answers", "Checks of answers", 60, *VLM),
    _check("bootstrap", "Checks of the bootstrap", 60, "transformers", "train:accelerate"),
    _check("stages", "Checks of the stages of a VLM", 90, *VLM, "train:peft"),
    Piece("prefill", "Time to the first token", "eval.cost.gpu.tables:prefill", 60, ("transformers",)),
    Piece("step", "Training steps", "eval.cost.gpu.tables:step", 90, ("transformers",)),
    Piece("compiled", "Encoders, compiled", "eval.cost.gpu.tables:compiled", 120),
    _check("qlora", "Checks of QLoRA", 60, *VLM, "train:peft", "train:bitsandbytes"),
    _check("zero2", "Checks of ZeRO-2", 90, *VLM, "train:deepspeed"),
    _check("packing", "Checks of packing with flash attention", 60, *VLM, "flash-attn"),
)


def missing(needs: Sequence[str]) -> str:
    """Name the packages that are not installed or have an unsuitable version; "" if there are none."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lacking = []
    for need in needs:
        extra, _, name = need.rpartition(":")
        wanted = Requirement(name)
        for text in project["optional-dependencies"].get(extra, ()):
            if Requirement(text).name == name:
                wanted = Requirement(text)
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            lacking.append(f"{wanted} (not installed)")
            continue
        if not wanted.specifier.contains(found, prereleases=True):
            lacking.append(f"{wanted} (found {found})")
    return ", ".join(lacking)
