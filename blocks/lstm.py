"""LSTM (Hochreiter & Schmidhuber 1997, doi 10.1162/neco.1997.9.8.1735), with the forget gate of Gers et al. 2000.

    i, f, g, o = W x_t + R h_{t-1} + b
    c_t = sigmoid(f) * c_{t-1} + sigmoid(i) * tanh(g)
    h_t = sigmoid(o) * tanh(c_t),   y_t = U h_t

The K tokens of a frame are processed in order. The state is (h, c), both [S, hidden]. There are two forms, the same
layer with other initial values:

    adapted   Gate biases follow the chrono initialisation (Tallec & Ollivier 2018, arXiv 1804.11188): time scales of
              the cells are spread over 1..`chrono` tokens, so that some last for a clip.
    paper     Forget biases of 1 (Gers et al.; Jozefowicz et al. 2015), other biases of 0. `chrono` has no use.

`step` is the recurrence as written. `prefetch` computes it with a hand-written gradient, and on CUDA devices, as
`retrieve` does there too, by PyTorch's fused LSTM (`fast/lstm.py`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rad_bench.blocks.fast import lstm as fast
from rad_bench.blocks.memory import MemoryBlock, Path, Prefetched, State, in_full_precision
from rad_bench.blocks.start import FormWithoutQueries


class LSTM(MemoryBlock):
    """Long short-term memory: a gated vector, constant in size."""

    size_option = "hidden"

    def __init__(self, dim: int, hidden: int = 128, chrono: int = 24, form: FormWithoutQueries = "adapted") -> None:
        super().__init__(dim)
        if hidden < 1 or chrono < 2:
            raise ValueError("lstm needs hidden >= 1 and chrono >= 2")
        self.hidden = hidden
        self.input = nn.Linear(dim, 4 * hidden)
        self.recurrent = nn.Linear(hidden, 4 * hidden, bias=False)
        self.output = nn.Linear(hidden, dim)
        with torch.no_grad():
            nn.init.xavier_uniform_(self.input.weight)
            for gate in self.recurrent.weight.chunk(4):
                nn.init.orthogonal_(gate)
            self.input.bias.zero_()
            i, f, _, _ = self.input.bias.chunk(4)
            if form == "adapted":
                f.copy_(torch.empty_like(f).uniform_(1, chrono - 1).clamp(min=1.0001).log())
                i.copy_(-f)
            else:
                f.fill_(1.0)

    def path(self, device: torch.device, dtype: torch.dtype) -> Path:
        why_not = fast.unavailable(device, dtype)
        if why_not:
            return Path("PyTorch, own prefetch", f"PyTorch's fused LSTM not used: {why_not}")
        return Path("PyTorch's fused LSTM", f"{dtype} on {device.type}")

    def initial_state(self, sequences: int) -> State:
        return self.zeros(sequences, self.hidden), self.zeros(sequences, self.hidden)

    def step(self, x_SKD: Tensor, state: State) -> tuple[Tensor, State]:
        h, c = state
        outputs = []
        for gates in self.input(x_SKD).unbind(1):
            h, c = self._cell(gates, h, c)
            outputs.append(h)
        return self.output(torch.stack(outputs, 1)), (h, c)

    @in_full_precision
    def _cell(self, gates: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        i, f, g, o = (gates + self.recurrent(h)).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c

    def prefetch(self, x_STKD: Tensor, state: State) -> Prefetched:
        T, K = x_STKD.shape[1:3]
        x_SLD = x_STKD.flatten(1, 2)
        if fast.unavailable(x_STKD.device, x_STKD.dtype):
            h_LSE, c_LSE = fast.recurrence(self.input(x_SLD.transpose(0, 1)), self.recurrent.weight, *state)
            h_SLE, c_SLE = h_LSE.transpose(0, 1), c_LSE.transpose(0, 1)
        else:
            layer = self.input.weight, self.input.bias, self.recurrent.weight, *state
            h_SLE = fast.fused(x_SLD, *layer)
            c_SLE = fast.cells(x_SLD, *layer, h_SLE)
        states = [state, *zip(h_SLE[:, K - 1 :: K].unbind(1), c_SLE[:, K - 1 :: K].unbind(1), strict=True)]
        return Prefetched(self.output(h_SLE).unflatten(1, (T, K)), states[:-1], states[-1])

    def retrieve(self, x_STKD: Tensor, prefetched: Prefetched) -> Tensor:
        if fast.unavailable(x_STKD.device, x_STKD.dtype):
            return super().retrieve(x_STKD, prefetched)
        S, T = x_STKD.shape[:2]
        h, c = (torch.stack(leaf, 1).flatten(0, 1) for leaf in zip(*prefetched.memory[-T:], strict=True))
        h_SKE = fast.fused(x_STKD.flatten(0, 1), self.input.weight, self.input.bias, self.recurrent.weight, h, c)
        return self.output(h_SKE).unflatten(0, (S, T))
