"""The table of benchmarks."""

from eval import easy_vqa
from eval.protocol import Benchmark
from sparse_vlm.errors import unknown_choice

BENCHMARKS: dict[str, Benchmark] = {"easy_vqa": easy_vqa}


def find_benchmark(name: str) -> Benchmark:
    """The benchmark of that name.

    Raises:
        UserError: unknown name (the nearest ones are named).
    """
    if name not in BENCHMARKS:
        raise unknown_choice("benchmark", name, BENCHMARKS)
    return BENCHMARKS[name]
