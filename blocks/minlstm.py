"""minLSTM (Feng et al. 2024, arXiv 2410.01201): an LSTM whose gates depend only on the input.

    f, i = sigmoid(W_f x_t), sigmoid(W_i x_t),   a = f / (f + i)
    h_t = a * h_{t-1} + (1 - a) * (W_h x_t),     y_t = U h_t

The K tokens of a frame are processed in order. The state is h, [S, hidden]. There are two forms:

    adapted   As above. As in `lstm`, time scales are initially spread over 1..`chrono` tokens:
              a = f / (f + i) = 1 - 1 / scale.
    paper     The version that the paper trains: g(W_h x_t) is written instead of W_h x_t, with g(x) = x + 1/2 for
              x >= 0, sigmoid(x) below, so that h stays positive and a scan in logarithms is possible. Biases start
              at 0; `chrono` has no use. The paper's convolution before the cell, used for text only, is left out.

`step` is the recurrence as written. It is linear in h, so `prefetch` and `retrieve` compute it by a parallel scan.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rad_bench.blocks.fast.scan import scan
from rad_bench.blocks.memory import MemoryBlock, Prefetched, State, in_full_precision
from rad_bench.blocks.start import FormWithoutQueries


class MinLSTM(MemoryBlock):
    """A gated vector with gates that do not depend on it: parallel in time, constant in size."""

    size_option = "hidden"

    def __init__(self, dim: int, hidden: int = 128, chrono: int = 24, form: FormWithoutQueries = "adapted") -> None:
        super().__init__(dim)
        if hidden < 1 or chrono < 2:
            raise ValueError("minlstm needs hidden >= 1 and chrono >= 2")
        self.hidden, self.form = hidden, form
        self.input = nn.Linear(dim, 3 * hidden)
        self.output = nn.Linear(hidden, dim)
        with torch.no_grad():
            f, _, _ = self.input.bias.zero_().chunk(3)
            if form == "adapted":
                f.copy_(torch.empty_like(f).uniform_(1, chrono - 1).log())

    def initial_state(self, sequences: int) -> State:
        return (self.zeros(sequences, self.hidden),)

    def step(self, x_SKD: Tensor, state: State) -> tuple[Tensor, State]:
        (h,) = state
        outputs = []
        for keep, write in zip(*(gate.unbind(1) for gate in self._gates(x_SKD)), strict=True):
            h = keep * h + write
            outputs.append(h)
        return self.output(torch.stack(outputs, 1)), (h,)

    def prefetch(self, x_STKD: Tensor, state: State) -> Prefetched:
        T, K = x_STKD.shape[1:3]
        h_SLE = scan(*self._gates(x_STKD.flatten(1, 2)), state[0])
        before = torch.cat([state[0][:, None], h_SLE[:, K - 1 :: K]], 1)
        return Prefetched(self.output(h_SLE).unflatten(1, (T, K)), before[:, :-1], (before[:, -1],))

    def retrieve(self, x_STKD: Tensor, prefetched: Prefetched) -> Tensor:
        S, T = x_STKD.shape[:2]
        before = prefetched.memory[:, -T:].flatten(0, 1)
        return self.output(scan(*self._gates(x_STKD.flatten(0, 1)), before)).unflatten(0, (S, T))

    def _gates(self, x_SLD: Tensor) -> tuple[Tensor, Tensor]:
        """Return, for each token, the factor of h and the term added to it."""
        f, i, candidate = self.input(x_SLD).chunk(3, -1)
        return _open(f, i, candidate if self.form == "adapted" else _positive(candidate))


def _positive(x: Tensor) -> Tensor:
    """Return g(x): increasing, positive, and about linear above 0."""
    return torch.where(x >= 0, x + 0.5, x.sigmoid())


@in_full_precision
def _open(f: Tensor, i: Tensor, candidate: Tensor) -> tuple[Tensor, Tensor]:
    # f / (f + i) in a numerically stable form.
    keep = torch.sigmoid(F.logsigmoid(f) - F.logsigmoid(i))
    return keep, (1 - keep) * candidate
