"""A stand-in for CUDA graphs: it repeats the operations of a call, one by one, on whatever tensors it is given.

What the call computed on the host is frozen, as in a graph.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only


class Tape:
    """Records functions, and counts recordings and repetitions."""

    def __init__(self) -> None:
        self.recordings = self.repetitions = 0

    def __call__(self, function, *given):
        self.recordings += 1
        with Operations() as operations:
            results = function(*given)

        def repeat(*arguments):
            self.repetitions += 1
            with torch.no_grad():  # the way back is among the operations
                return operations.repeat(given, arguments, results)

        return repeat


class Operations(TorchDispatchMode):
    """The operations within it, in order. A tensor is known by its place in memory, which stays its own."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        outputs = function(*args, **(kwargs or {}))
        self.calls.append((function, args, kwargs or {}, outputs))  # so that no place in memory is used twice
        return outputs

    def repeat(self, given, arguments, results):
        """Return `results` as they are for other arguments than the given ones."""
        now = {place(tensor): other for tensor, other in zip(given, arguments, strict=True)}

        def current(tensor: Tensor) -> Tensor:
            return now.get(place(tensor), tensor)  # others are weights and constants

        for function, args, kwargs, outputs in self.calls:
            again = function(*tree_map_only(Tensor, current, args), **tree_map_only(Tensor, current, kwargs))
            for before, after in zip(tensors(outputs), tensors(again), strict=True):
                now[place(before)] = after
        return tuple(current(result) for result in results)


def place(tensor):
    storage = tensor.untyped_storage()
    return storage._cdata, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype


def tensors(outputs):
    return [x for x in (outputs if isinstance(outputs, (tuple, list)) else [outputs]) if isinstance(x, Tensor)]
