"""Gated DeltaNet (Yang et al. 2024, arXiv 2412.06464): a matrix memory with the delta rule and decay.

    M_l = a_l M_{l-1} (I - b_l k_l k_l^T) + b_l v_l k_l^T    a = exp(-rate softplus(w_a x + c)), b = sigmoid(w_b x)
    h = M q,   y = U (RMSNorm(h) * SiLU(W_g x))

With a = 1 and b = 1, the new value of a key replaces the old one; a decays all keys. Keys and queries are
L2-normalised. The K tokens of a frame are written in order. The state is M, [S, H, P, P]. There are two forms:

    adapted   A frame reads the memory of the frames before it, then writes. q, k and v are linear in x: neighbouring
              tokens here are locations in a frame, not words. One norm for all heads. Decay over tens of frames.
              Queries start as copies of keys.
    paper     As published: q, k and v pass through a causal convolution over 4 tokens and SiLU, a token reads after
              it has written, the norm is by head, decay starts at its published values, and queries start apart from
              keys (`paper-tied`: as copies). The state begins with the convolution's tail, [S, 3, 3 * H * P].

`step` is the recurrence as written. `prefetch` writes chunks of whole frames at once (`fast/gated_deltanet.py`), or on
CUDA devices by flash-linear-attention's kernels, if installed (`fast/fla_kernels.py`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rad_bench.blocks.convolution import PUBLISHED_TAPS, convolve_apart, convolve_clip, with_convolution
from rad_bench.blocks.fast import fla_kernels as kernels
from rad_bench.blocks.fast import gated_deltanet
from rad_bench.blocks.fast.gated_deltanet import in_chunks
from rad_bench.blocks.memory import Path, Prefetched, State, in_full_precision
from rad_bench.blocks.start import Form, decay_start, start_as_conv1d, tie_queries

LARGEST_HEAD = 256  # channels, of the kernels


class GatedDeltaNet(kernels.ScannedBlock):
    """The gated delta rule: a matrix memory whose writes replace the old value of a key."""

    size_option = "head_dim"
    fine_option = count_option = "heads"
    open: nn.Module  # what the gate of the output is computed by
    chunked: ClassVar[Any] = gated_deltanet  # the rule in chunks: `write_chunks`, `read`, `asked` and `own`
    rule: ClassVar[str] = "gated_deltanet"  # its name in `fast/fla_kernels.py`

    def __init__(
        self, dim: int, heads: int = 4, head_dim: int = 16, chunk: int = 32, form: Form = "adapted",
    ) -> None:  # fmt: skip
        super().__init__(dim)
        if min(heads, head_dim, chunk) < 1:
            raise ValueError("gated_deltanet needs heads, head_dim, chunk >= 1")
        self.heads, self.head_dim, self.chunk, self.form = heads, head_dim, chunk, form
        inner = heads * head_dim
        self.qkv = nn.Linear(dim, 3 * inner, bias=False)
        if form != "paper":
            tie_queries(self.qkv.weight, 0, inner, inner)
        self._make_gates()
        self.norm = nn.Parameter(torch.ones(inner if form == "adapted" else head_dim))
        self.output = nn.Linear(inner, dim, bias=False)
        if form != "adapted":
            self.conv_weight = nn.Parameter(start_as_conv1d(PUBLISHED_TAPS, PUBLISHED_TAPS, 3 * inner))
            if form == "paper-tied":
                tie_queries(self.conv_weight.T, 0, inner, inner)

    def _make_gates(self) -> None:
        self.gates = nn.Linear(self.dim, 2 * self.heads, bias=False)
        bias, log_rate = decay_start(self.heads, self.form, lowest=0.0)
        self.decay_bias, self.log_rate = nn.Parameter(bias), nn.Parameter(log_rate)
        self.open = nn.Linear(self.dim, self.heads * self.head_dim, bias=False)

    def path(self, device: torch.device, dtype: torch.dtype) -> Path:
        path = super().path(device, dtype)
        return path if self.form == "adapted" else with_convolution(path, device, dtype, PUBLISHED_TAPS)

    def _no_kernels(self, device: torch.device, dtype: torch.dtype) -> str:
        too_large = f"heads of more than {LARGEST_HEAD} channels" if self.head_dim > LARGEST_HEAD else ""
        return kernels.unavailable(device, dtype) or too_large

    def initial_state(self, sequences: int) -> State:
        M = self.zeros(sequences, self.heads, self.head_dim, self.head_dim)
        if self.form == "adapted":
            return (M,)
        return self.zeros(sequences, PUBLISHED_TAPS - 1, self.qkv.out_features), M

    def step(self, x_SKD: Tensor, state: State) -> tuple[Tensor, State]:
        qkv, _, tail = self._convolved(x_SKD[:, None], state[:-1])
        q, k, v, log_a, b = self._project(qkv, x_SKD[:, None])
        h, written = _write(q, k, v, log_a.exp(), b, state[-1])
        return self._finish(h if self.form != "adapted" else q @ state[-1].mT, x_SKD), (*tail, written)

    def read(self, x_SKD: Tensor, state: State) -> Tensor:
        if self.form != "adapted":
            return super().read(x_SKD, state)
        return self._finish(self._queries(x_SKD[:, None]) @ state[0].mT, x_SKD)

    def _prefetch_chunks(self, x_STKD: Tensor, state: State) -> Prefetched:
        T, K = x_STKD.shape[1:3]
        qkv, tails, tail = self._convolved(x_STKD, state[:-1])
        q, *written = self._project(qkv, x_STKD)
        chunks = math.ceil(T / max(1, self.chunk // K))
        L = math.ceil(T / chunks) * K  # tokens a chunk: whole frames, the same number in each
        memory, M = self.chunked.write_chunks(*(in_chunks(tensor, L) for tensor in written), state[-1], K)
        readers, answer = self._asked(K, q, *written)
        h = answer(*(self.chunked.read(reader, memory, 0) for reader in readers))
        return Prefetched(self._finish(h, x_STKD), (memory, tails), (*tail, M))

    def retrieve(self, x_STKD: Tensor, prefetched: Prefetched) -> Tensor:
        memory, tails = prefetched.memory
        Q, K = x_STKD.shape[1:3]
        readers, answer = self._noisy(x_STKD, tails)
        if isinstance(memory, kernels.Written):
            recalled, _, _ = self._scan_tokens(memory, readers)
        else:
            skipped = (prefetched.y_STKD.shape[1] - Q) * K  # clean tokens before the first noisy frame
            recalled = [self.chunked.read(reader, memory, skipped) for reader in readers]
        return self._finish(answer(*recalled), x_STKD)

    def _scan(
        self, clean_STKD: Tensor, noisy_SQKD: Tensor | None, state: State
    ) -> tuple[Tensor, Tensor | None, tuple[kernels.Written, Tensor | None], State]:
        K = clean_STKD.shape[2]
        qkv, tails, tail = self._convolved(clean_STKD, state[:-1])
        q, *tokens = self._project(qkv, clean_STKD)
        k, v, log_a, b = (x.unflatten(2, (-1, K)) for x in tokens)
        written = kernels.Written(k, v, log_a, b, state[-1])
        readers, answer = ([], _itself) if noisy_SQKD is None else self._noisy(noisy_SQKD, tails)
        if self.form == "adapted":  # clean frames read before they write, as noisy ones do
            (h, *recalled), _, M = self._scan_tokens(written, [q, *readers])
        else:
            recalled, h, M = self._scan_tokens(written, readers, q)
        y_SQKD = None if noisy_SQKD is None else self._finish(answer(*recalled), noisy_SQKD)
        return self._finish(h, clean_STKD), y_SQKD, (written, tails), (*tail, M)

    def _scan_tokens(
        self, written: kernels.Written, readers: Sequence[Tensor], q: Tensor | None = None
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """Do `kernels.scan` with queries, and what they read, as [S, H, Q * K, P]."""
        frames = -1, written.k.shape[3]
        readers = [x.unflatten(2, frames) for x in readers]
        recalled, h, M = kernels.scan(self.rule, written, readers, None if q is None else q.unflatten(2, frames))
        return [x.flatten(2, 3) for x in recalled], h.flatten(2, 3), M

    def _noisy(self, x_SQKD: Tensor, tails: Tensor | None) -> tuple[Sequence[Tensor], Callable[..., Tensor]]:
        """Return what noisy frames ask of the memory before each, as `_asked` does."""
        if tails is None:
            return [self._queries(x_SQKD)], _itself
        qkv = convolve_apart(self.qkv(x_SQKD), tails, self.conv_weight, self._no_bias(), silu=True)
        return self._asked(x_SQKD.shape[2], *self._project(qkv, x_SQKD))

    def _asked(self, K: int, *tokens: Tensor) -> tuple[Sequence[Tensor], Callable[..., Tensor]]:
        """Return the queries [S, H, N, P] that tokens q, k, v, log a, b put to the memory before their frame, and a
        function from what these have read to what the tokens read.

        In the paper's form, a token reads after it has written, with the earlier tokens of its frame.
        """
        if self.form == "adapted":
            return tokens[:1], _itself
        return self.chunked.asked(K, *tokens), functools.partial(self.chunked.own, K, *tokens)

    def _convolved(self, x_STKD: Tensor, tail: State) -> tuple[Tensor, Tensor | None, State]:
        """Return q, k and v of consecutive frames, side by side; in the paper's form convolved, with the tails."""
        qkv = self.qkv(x_STKD)
        if self.form == "adapted":
            return qkv, None, ()
        qkv, tails, last = convolve_clip(qkv, tail[0], self.conv_weight, self._no_bias(), silu=True)
        return qkv, tails, (last,)

    def _no_bias(self) -> Tensor:
        return self.zeros(self.qkv.out_features)

    def _project(self, qkv: Tensor, x_STKD: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return q, k, v as [S, H, T * K, P] and log a, b as [S, H, T * K, 1]."""
        q, k, v = self._by_head(qkv, 3)
        return F.normalize(q, dim=-1), F.normalize(k, dim=-1), v, *self._gates(x_STKD)

    def _gates(self, x_STKD: Tensor) -> tuple[Tensor, Tensor]:
        """Return log a and b, [S, H, T * K, 1]."""
        a, b = self._by_head(self.gates(x_STKD), 2)
        log_a = -self.log_rate.exp()[:, None, None] * F.softplus(a + self.decay_bias[:, None, None])
        return log_a, b.sigmoid()

    def _queries(self, x_STKD: Tensor) -> Tensor:
        """Return q only, for frames that do not write."""
        q = F.linear(x_STKD, self.qkv.weight[: self.heads * self.head_dim])
        return F.normalize(self._by_head(q, 1)[0], dim=-1)

    def _by_head(self, projections_STK: Tensor, number: int) -> Tensor:
        """Split the last dimension into `number` projections and move the heads: [number, S, H, T * K, ...]."""
        projections = projections_STK.flatten(1, 2).unflatten(-1, (number, self.heads, -1))
        return projections.permute(2, 0, 3, 1, 4).contiguous()

    def _finish(self, h_SHLP: Tensor, x: Tensor) -> Tensor:
        """Normalise, gate and project what the tokens of x [S, ..., K, D] read."""
        h = h_SHLP.transpose(1, 2).reshape(*x.shape[:-1], -1, len(self.norm))  # all heads as one, or by head
        return self.output(F.rms_norm(h, h.shape[-1:], self.norm).flatten(-2) * self._opening(x))

    def _opening(self, x: Tensor) -> Tensor:
        """Return the gate of what is read, [..., H * P]."""
        return F.silu(self.open(x))


def _itself(h: Tensor) -> Tensor:
    return h


@in_full_precision
def _write(q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, M: Tensor) -> tuple[Tensor, Tensor]:
    """Write the K tokens of a frame in order; q, k, v [S, H, K, P], b and a [S, H, K, 1] (or P), M [S, H, P, P].

    Return what each token reads once it has written, [S, H, K, P], and the last M.
    """
    read_by = []
    for token in range(k.shape[2]):
        q_t, k_t, v_t, b_t = (tensor[:, :, token, :, None] for tensor in (q, k, v, b))
        M = a[:, :, token, None] * M
        M = M + b_t * (v_t - M @ k_t) @ k_t.mT
        read_by.append((M @ q_t)[..., 0])
    return torch.stack(read_by, 2), M
