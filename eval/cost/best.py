"""Best against best: every tower in the mode and dtype in which it is fastest."""

from collections.abc import Sequence
from typing import NamedTuple

from eval.cost.measurement import Cost, Result
from eval.cost.report import Section
from eval.cost.runtimes import INT8, Setting

# Modes that answer another question: a training step, and lower accuracy, whose comparison is a table of its own.
APART = ("training", INT8)


class Best(NamedTuple):
    """A tower's fastest measurement.

    Attributes:
        cost: its cost.
        setting: how it ran.
    """

    cost: Cost
    setting: Setting


def best_sections(results: Sequence[Result]) -> list[Section]:
    """Tabulate the fastest measurement of each tower, for every set, number of threads and batch size.

    Returns:
        A table for each of them that was measured in several modes or dtypes; int8 and training are left out.
    """
    groups: dict[tuple[str, int, int], list[Result]] = {}
    for result in results:
        if result.setting.mode not in APART:
            groups.setdefault((result.name, result.setting.threads, result.setting.batch), []).append(result)
    return [_section(name, members) for (name, _, _), members in groups.items() if len(members) > 1]


def fastest(results: Sequence[Result]) -> list[Best]:
    """Find the fastest measurement of each tower, by the median."""
    by_tower = zip(*([Best(cost, result.setting) for cost in result.costs] for result in results), strict=True)
    return [min(measured, key=lambda best: best.cost.median) for measured in by_tower]


def _section(name: str, results: Sequence[Result]) -> Section:
    rows = [["tower", "image", "tokens", "GMAC", "fastest", "ms", "range", "images/s"]]
    found, batch = fastest(results), results[0].setting.batch
    for cost, setting in found:
        rows.append([*cost.tower_cells(), f"{setting.mode}, {setting.dtype}", *cost.time_cells(batch)])
    title = f"{name}: {results[0].setting.size}: best against best"
    return Section(title, rows, "; ".join(ratios([best.cost for best in found])))


def ratios(costs: Sequence[Cost]) -> list[str]:
    """Compare the medians of our towers with those of the dense ones: "NAME@SIZE: 5.2× DENSE@SIZE, 12.0× …"."""
    dense = [cost for cost in costs if not cost.tower.sparse]
    return [
        f"{cost.tower}: " + ", ".join(f"{other.median / cost.median:.2f}× {other.tower}" for other in dense)
        for cost in costs
        if cost.tower.sparse and dense
    ]
