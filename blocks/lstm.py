"""LSTM (Hochreiter & Schmidhuber 1997), with the forget gate of Gers et al. 2000.

    i, f, g, o = W x_t + R h_{t-1} + b
    c_t = sigmoid(f) * c_{t-1} + sigmoid(i) * tanh(g)
    h_t = sigmoid(o) * tanh(c_t),   y_t = U h_t

The K tokens of a frame are taken in order. The state is (h, c), both [S, hidden]. Forget biases follow the chrono
initialisation (Tallec & Ollivier 2018, arXiv 1804.11188), which spreads the cells' time scales over 1..`chrono` tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from rad_bench.blocks.memory import MemoryBlock, Prefetched, State, in_full_precision

sigmoid_backward, tanh_backward = torch.ops.aten.sigmoid_backward, torch.ops.aten.tanh_backward  # (gradient, output)


class LSTM(MemoryBlock):
    """Long short-term memory: a gated vector, constant in size."""

    size_option = "hidden"

    def __init__(self, dim: int, hidden: int = 128, chrono: int = 24) -> None:
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
            f.copy_(torch.empty_like(f).uniform_(1, chrono - 1).clamp(min=1.0001).log())
            i.copy_(-f)

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
        # nn.LSTM would not do: it returns c for the last token alone, and retrieval needs it before every frame.
        T, K = x_STKD.shape[1:3]
        h_LSE, c_LSE = _recurrence(self.input(x_STKD.flatten(1, 2).transpose(0, 1)), self.recurrent.weight, *state)
        states = [state, *zip(h_LSE[K - 1 :: K].unbind(), c_LSE[K - 1 :: K].unbind(), strict=True)]
        y_STKD = self.output(h_LSE.transpose(0, 1)).unflatten(1, (T, K))
        return Prefetched(y_STKD, states[:-1], states[-1])


@in_full_precision
def _recurrence(gates_LSG: Tensor, weight_GE: Tensor, h_SE: Tensor, c_SE: Tensor) -> tuple[Tensor, Tensor]:
    """Return h and c after each of L tokens, [L, S, E]; the gates come without what h adds to them."""
    h_LSE, c_LSE, *_ = _Recurrence.apply(gates_LSG, weight_GE, h_SE, c_SE)
    return h_LSE, c_LSE


class _Recurrence(torch.autograd.Function):
    """`_cell` over L tokens, its gradient written out. G = 4 * hidden, the gates i, f, g, o side by side.

    A loop that PyTorch differentiates keeps books of every operation, and adds the weights' gradient up token by token.
    Here only what waits for the next token is in the loop; the rest is done for all tokens at once.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(gates_LSG: Tensor, weight_GE: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
        opened_LSG, found = gates_LSG.clone(), []
        for gates in opened_LSG.unbind():
            i, f, g, o = gates.add_(h @ weight_GE.T).chunk(4, -1)
            i.sigmoid_()
            f.sigmoid_()
            g.tanh_()
            o.sigmoid_()
            c = torch.addcmul(f * c, i, g)
            tanh_c = c.tanh()
            h = o * tanh_c
            found.append((h, c, tanh_c))
        h_LSE, c_LSE, tanh_LSE = (torch.stack(parts) for parts in zip(*found, strict=True))
        return h_LSE, c_LSE, tanh_LSE, opened_LSG

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        _, weight_GE, h_SE, c_SE = inputs
        ctx.mark_non_differentiable(*output[2:])
        ctx.save_for_backward(weight_GE, h_SE, c_SE, *output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dh_LSE: Tensor, dc_LSE: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
        weight_GE, h_SE, c_SE, h_LSE, c_LSE, tanh_c, opened_LSG = ctx.saved_tensors
        before_h, before_c = torch.cat([h_SE[None], h_LSE[:-1]]), torch.cat([c_SE[None], c_LSE[:-1]])
        i, f, g, o = opened_LSG.chunk(4, -1)
        c_by_h = tanh_backward(o, tanh_c)
        # What c gains by the first three gates: times dc, it becomes their gradient; h by the last, times dh.
        c_by_gates = sigmoid_backward(g, i), sigmoid_backward(before_c, f), tanh_backward(i, g)
        dgates = torch.stack((*c_by_gates, sigmoid_backward(tanh_c, o)), 2)
        dh, dc = torch.zeros_like(h_SE), torch.zeros_like(c_SE)
        for t in reversed(range(len(dgates))):
            dh = dh_LSE[t] + dh
            dc = torch.addcmul(dc_LSE[t] + dc, dh, c_by_h[t])
            dgates[t, :, :3] *= dc[:, None]
            dgates[t, :, 3] *= dh
            dh, dc = dgates[t].flatten(1) @ weight_GE, dc * f[t]
        dgates_LSG = dgates.flatten(2)
        return dgates_LSG, dgates_LSG.flatten(0, 1).T @ before_h.flatten(0, 1), dh, dc
