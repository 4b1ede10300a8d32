"""Record what a function of tensors launches on a GPU, and launch it again as one CUDA graph.

A GPU that runs short kernels waits for Python, which launches them one by one. A graph launches all of them at once. It
repeats the same operations on the same memory, so the function must be pure, and nothing on the host may depend on its
tensors: what it reads besides its arguments (weights, say) may only change in place.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rad_bench.errors import UserError

Function = Callable[..., tuple[Tensor, ...]]
Record = Callable[..., Function]  # (function, *arguments) -> a function of such arguments that repeats it

WARM_UP = 3  # calls before a recording, in which libraries choose kernels and allocate
TOLERANCE = 1e-3  # of a tensor's largest value, between a graph's results and the function's


class Repeats:
    """Calls functions of tensors. One whose arguments come in the same shapes again is recorded and repeated.

    All functions given to one object must be the same, but for what their arguments' shapes decide. The first result of
    a graph on arguments that it was not recorded with is compared with the function's own.
    """

    def __init__(self, record: Record | None) -> None:
        """`record` makes graphs; None: functions are called."""
        self.record = record
        self.called: set[tuple[object, ...]] = set()  # shapes
        self.recorded: dict[tuple[object, ...], Function] = {}
        self.compared: set[tuple[object, ...]] = set()

    def __call__(self, function: Function, *arguments: Tensor) -> tuple[Tensor, ...]:
        """Return `function(*arguments)`. Raises `UserError` if its graph does not give the same."""
        if self.record is None:
            return function(*arguments)
        shapes = tuple((tensor.shape, tensor.dtype) for tensor in arguments)
        if shapes not in self.called:  # a shape that comes once, as that of a growing memory, is not worth a recording
            self.called.add(shapes)
            return function(*arguments)
        if shapes not in self.recorded:
            self.recorded[shapes] = self.record(function, *arguments)
            return self.recorded[shapes](*arguments)
        results = self.recorded[shapes](*arguments)
        if shapes not in self.compared:
            self.compared.add(shapes)
            _compare(results, function(*arguments))
        return results


def record_on_cuda(function: Function, *arguments: Tensor) -> Function:
    """Record a call as a CUDA graph. What it returns copies its arguments in and its results out."""
    with torch.cuda.device(arguments[0].device):
        own = [tensor.clone() for tensor in arguments]
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):  # a recording needs calls on another stream before it
            for _ in range(WARM_UP):
                function(*own)
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = function(*own)

    def repeat(*arguments: Tensor) -> tuple[Tensor, ...]:
        for place, tensor in zip(own, arguments, strict=True):
            place.copy_(tensor)
        graph.replay()
        return tuple(tensor.clone() for tensor in results)

    return repeat


def _compare(repeated: tuple[Tensor, ...], called: tuple[Tensor, ...]) -> None:
    largest = [tensor.abs().max() for tensor in called if tensor.numel()]
    noise = TOLERANCE * torch.stack([value.float() for value in largest]).max()  # a gradient of nearly zero is rounding
    for ours, twin in zip(repeated, called, strict=True):
        if twin.numel() and not (ours - twin).abs().max() <= TOLERANCE * torch.maximum(twin.abs().max(), noise):
            raise UserError(
                "launch.cuda_graphs: a recorded step gave other results than the step itself. The memory block may "
                "read values on the host, or keep something between calls; set launch.cuda_graphs: false."
            )
