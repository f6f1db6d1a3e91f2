"""Timing in turns, operation counts, and checks of counts."""

import pytest
import torch

from sparse_vlm.errors import UserError
from sparse_vlm.measure.timing import machine, matmul, require_positive, take_turns

CPU = torch.device("cpu")


def test_runs_take_turns_in_alternating_order() -> None:
    order: list[str] = []
    seconds = take_turns([lambda name=name: order.append(name) for name in "abc"], repeats=2, device=CPU)  # type: ignore[misc]
    assert "".join(order) == "abc" + "abc" + "cba", "a warm-up, then two rounds"
    assert [len(times) for times in seconds] == [2, 2, 2]


def test_a_matrix_product_reports_its_operations() -> None:
    run, operations = matmul(torch.float32, CPU)
    product = run()
    assert isinstance(product, torch.Tensor)
    side = product.shape[0]
    assert operations == 2 * side**3


def test_the_machine_is_described() -> None:
    described = machine(CPU)
    assert described["torch"] == torch.__version__
    assert described["cpu"]
    assert int(described["cores"]) >= 1


def test_counts_must_be_at_least_one() -> None:
    require_positive(batch_sizes=[1, 2], repeats=1)
    with pytest.raises(UserError, match="--prompt_tokens must be at least 1, got 0"):
        require_positive(prompt_tokens=[3, 0])
