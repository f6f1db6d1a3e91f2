"""Work that the processes of a stage share before its trainer exists."""

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from train.stages.arguments import StageArguments

Item = TypeVar("Item")


def share(items: Sequence[Item], args: StageArguments) -> Sequence[Item]:
    """Return this process' share: every n-th of the items, for n processes."""
    return items[args.process_index :: args.world_size]


def gathered(value: Item, args: StageArguments) -> list[Item]:
    """Return the values of all processes, in their order, in every process. They must be picklable."""
    values: list[Any] = [value]
    if args.world_size > 1:
        values = [None] * args.world_size
        torch.distributed.all_gather_object(values, value)
    return values


def summed(tensor: Tensor, args: StageArguments) -> Tensor:
    """Return the sum over the processes, the same in every process, on the tensor's device."""
    if args.world_size == 1:
        return tensor
    total = tensor.to(args.device, copy=True)
    torch.distributed.all_reduce(total)
    return total.to(tensor.device)
