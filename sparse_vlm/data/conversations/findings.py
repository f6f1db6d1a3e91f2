"""What the check of a sample before training finds, and how all samples are checked in one process."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset

from sparse_vlm.errors import UserError

BATCH = 256  # samples that a data worker checks at once


class Finding(NamedTuple):
    """What the check of a sample found.

    Attributes:
        length: tokens of its row, if they were counted.
        full_length: the same without the limit.
        problem: why the sample is bad or left out.
        too_long: the policy for long samples leaves it out, independently of the policy for bad ones.
        key: identifies all that the finding depends on besides the rules of the check; None: unknown, or it was found
            in no time.
    """

    length: int | None = None
    full_length: int | None = None
    problem: str | None = None
    too_long: bool = False
    key: str | None = None


Known = Mapping[str, Finding]  # by key
Check = Callable[[int, Known], Finding]  # (place of a sample, what is known) -> what the check finds


class Checks:
    """Checks samples in this process, and remembers nothing."""

    def run(self, check: Check, count: int, rules: Mapping[str, Any], *, errors: bool, images: bool) -> list[Finding]:
        """Check `count` samples.

        Args:
            check: checks one; see `Check`.
            count: number of samples.
            rules: all that a finding depends on besides its key, as JSON values.
            errors: whether a bad sample is an error.
            images: whether a check reads images. Then several threads work, because decoding releases the GIL.

        Raises:
            UserError: the first bad sample, with `errors`.
        """
        findings = []
        for finding in each_finding(check, range(count), {}, threads=cpus() if images else 1):
            if errors and stops(finding):
                raise UserError(finding.problem)
            findings.append(finding)
        return findings


def stops(finding: Finding) -> bool:
    """Return whether a sample is bad, which long samples that are left out are not."""
    return finding.problem is not None and not finding.too_long


def each_finding(
    check: Check, places: Sequence[int], known: Known, *, workers: int = 0, threads: int = 1
) -> Iterator[Finding]:
    """Check samples in their order.

    Args:
        check: checks one.
        places: of the samples.
        known: passed to `check`.
        workers: number of data workers; 0: this process.
        threads: number of threads of each.
    """
    batches = DataLoader(
        _Checked(check, places, known, threads),
        batch_size=BATCH,
        num_workers=workers,
        collate_fn=list,
        generator=torch.Generator(),  # the global one is left as it is
    )
    return (finding for batch in batches for finding in batch)


class _Checked(Dataset):
    """The findings of samples, in batches."""

    def __init__(self, check: Check, places: Sequence[int], known: Known, threads: int) -> None:
        self.check, self.places, self.known, self.threads = check, places, known, threads

    def __len__(self) -> int:
        return len(self.places)

    def __getitems__(self, indices: Sequence[int]) -> list[Finding]:
        with ThreadPoolExecutor(max_workers=self.threads) as pool:
            return list(pool.map(lambda index: self.check(self.places[index], self.known), indices))


def cpus() -> int:
    """Return the number of processors, 1 if it is unknown."""
    return os.cpu_count() or 1
