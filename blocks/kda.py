"""Kimi Delta Attention (Kimi Team 2025, arXiv 2510.26692): Gated DeltaNet that decays each channel of a key by itself.

    M_l = M_{l-1} diag(a_l) (I - b_l k_l k_l^T) + b_l v_l k_l^T
    a = exp(-rate softplus(W_2 W_1 x + c)),   b = sigmoid(w x)
    h = M q,   y = U (RMSNorm(h) * sigmoid(V_2 V_1 x + d))

a is a vector, a number for each of a head's P channels; W_1 and V_1 have rank P. All else, the two forms included, is
as in `gated_deltanet.py`. Decay starts as there, with a bias for each channel and published rates of 1 to 16; the
published layer also divides queries by sqrt(P), which the norm takes out again. The state is M, [S, H, P, P].

`step` is the recurrence as written. `prefetch` writes chunks of whole frames at once (`fast/kda.py`), or on CUDA
devices by flash-linear-attention's kernels, if installed (`fast/fla_kernels.py`).
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rad_bench.blocks.fast import kda
from rad_bench.blocks.gated_deltanet import GatedDeltaNet
from rad_bench.blocks.start import Form, decay_start


class KimiDeltaAttention(GatedDeltaNet):
    """The delta rule with decay by channel."""

    chunked: ClassVar[Any] = kda
    rule: ClassVar[str] = "kda"

    def __init__(
        self, dim: int, heads: int = 4, head_dim: int = 16, chunk: int = 16, form: Form = "adapted",
    ) -> None:  # fmt: skip
        super().__init__(dim, heads, head_dim, chunk, form)

    def _make_gates(self) -> None:
        inner = self.heads * self.head_dim
        self.write = nn.Linear(self.dim, self.heads, bias=False)
        self.decay = _low_rank(self.dim, self.head_dim, inner, bias=False)
        self.open = _low_rank(self.dim, self.head_dim, inner, bias=True)
        bias, _ = decay_start(inner, self.form, lowest=1.0)
        _, log_rate = decay_start(self.heads, self.form, lowest=1.0)
        self.decay_bias, self.log_rate = nn.Parameter(bias), nn.Parameter(log_rate)

    def _gates(self, x_STKD: Tensor) -> tuple[Tensor, Tensor]:
        step = F.softplus(self.decay(x_STKD) + self.decay_bias)
        log_a = -self.log_rate.exp()[:, None, None] * self._by_head(step, 1)[0]
        return log_a, self._by_head(self.write(x_STKD), 1)[0].sigmoid()

    def _opening(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.open(x))


def _low_rank(dim: int, rank: int, inner: int, bias: bool) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, rank, bias=False), nn.Linear(rank, inner, bias=bias))
