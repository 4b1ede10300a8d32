"""A stand-in for CUDA graphs: PyTorch's trace of operations, which repeats them on whatever it is given.

What is computed on the host is frozen in both.
"""

import torch
from torch.fx.experimental.proxy_tensor import make_fx


class Tape:
    """Records a function as its trace, and counts recordings and repetitions."""

    def __init__(self):
        self.recordings = self.repetitions = 0

    def __call__(self, function, *arguments):
        self.recordings += 1
        trace = make_fx(function)(*arguments)

        def repeat(*arguments):
            self.repetitions += 1
            with torch.no_grad():  # the way back is in the trace
                return tuple(trace(*arguments))

        return repeat
