"""mLSTM (Beck et al. 2024, arXiv 2405.04517): a matrix memory with exponential gates and a normaliser.

    C_t = f_t C_{t-1} + i_t v_t k_t^T,   n_t = f_t n_{t-1} + i_t k_t      f = sigmoid(w_f x), i = exp(w_i x), one a head
    h = C q / max(|n . q|, 1),           y = U (RMSNorm(h) * sigmoid(W_o x))

C and n are stored divided by exp(m), m_t = max(log f_t + m_{t-1}, log i_t), so that nothing overflows. The K tokens of
a frame are written in order. The state is C [S, H, P, P], n [S, H, P] and m [S, H]. There are two forms:

    adapted   As above. A frame reads the memory of the frames before it, then writes. q, k and v are linear in x:
              neighbouring tokens here are locations in a frame, not words. Queries start as copies of keys.
    paper     The layer inside the published block, with the initial values of its code. A token reads after it has
              written, and queries start apart from keys (in `paper-tied`, the default, as copies):

                  u = W_u x,   c = SiLU(convolution of u over 4 tokens)
                  q, k = W_q c, W_k c,   v = W_v u,   gates from (q, k, v)     W_q, W_k, W_v in diagonal blocks of 4 x 4
                  y = U ((LayerNorm by head(h) + skip * c) * SiLU(W_o x))

              The state begins with the convolution's tail, [S, 3, H * P].

`step` is the recurrence as written. `prefetch` and `retrieve` take frames in chunks (`fast/mlstm.py`), or on CUDA
devices a whole clip by flash-linear-attention's kernels, if installed (`fast/fla_kernels.py`).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rad_bench.blocks.convolution import PUBLISHED_TAPS, convolve_apart, convolve_clip, with_convolution
from rad_bench.blocks.fast import fla_kernels as kernels
from rad_bench.blocks.fast.mlstm import Scanned, lay_out, prefetch_chunks, recall, recall_before, recall_by_chunk
from rad_bench.blocks.memory import Path, Prefetched, State, in_full_precision
from rad_bench.blocks.start import Form, start_as_conv1d, tie_queries


class MLSTM(kernels.ScannedBlock):
    """xLSTM's matrix memory: keys and values, with input and forget gates."""

    size_option = "head_dim"
    fine_option = count_option = "heads"

    def __init__(
        self, dim: int, heads: int = 4, head_dim: int = 16, chunk: int = 64, form: Form = "paper-tied",
    ) -> None:  # fmt: skip
        super().__init__(dim)
        if min(heads, head_dim, chunk) < 1:
            raise ValueError("mlstm needs heads, head_dim, chunk >= 1")
        self.heads, self.head_dim, self.chunk, self.form = heads, head_dim, chunk, form
        inner = heads * head_dim
        if form == "adapted":
            self.qkv = nn.Linear(dim, 3 * inner, bias=False)
        else:
            self.up = nn.Linear(dim, inner, bias=False)
            self.conv_weight = nn.Parameter(start_as_conv1d(PUBLISHED_TAPS, PUBLISHED_TAPS, inner))
            self.conv_bias = nn.Parameter(start_as_conv1d(PUBLISHED_TAPS, inner))
            block = math.gcd(inner, 4)  # 4, unless heads * head_dim is no multiple of it
            self.qkv_blocks = nn.Parameter(torch.empty(3 * inner // block, block, block))
            self.skip = nn.Parameter(torch.ones(inner))
        self.gates = nn.Linear(dim if form == "adapted" else 3 * inner, 2 * heads)
        self.open = nn.Linear(dim, inner, bias=form == "adapted")
        self.norm = nn.Parameter(torch.ones(inner))
        self.output = nn.Linear(inner, dim, bias=False)
        with torch.no_grad():  # heads forget over 1 / (1 - sigmoid(3..6)) = 20 to 400 tokens
            self.gates.weight.mul_(0.1 if form == "adapted" else 0.0)
            i, f = self.gates.bias.chunk(2)
            i.zero_()
            f.copy_(torch.linspace(3.0, 6.0, heads))
            if form != "adapted":
                i.normal_(0, 0.1)
                for weight in (self.up.weight, self.open.weight, self.qkv_blocks):
                    weight.normal_(0, math.sqrt(2 / (5 * dim)))  # "small init" (Nguyen & Salazar 2019)
                self.output.weight.normal_(0, 2 / math.sqrt(dim))
        if form != "paper":
            weight = self.qkv.weight if form == "adapted" else self.qkv_blocks
            tie_queries(weight, 0, len(weight) // 3, len(weight) // 3)

    def path(self, device: torch.device, dtype: torch.dtype) -> Path:
        path = super().path(device, dtype)
        return path if self.form == "adapted" else with_convolution(path, device, dtype, PUBLISHED_TAPS)

    def initial_state(self, sequences: int) -> State:
        H, P = self.heads, self.head_dim
        memory = self.zeros(sequences, H, P, P), self.zeros(sequences, H, P), self.zeros(sequences, H)
        if self.form == "adapted":
            return memory
        return self.zeros(sequences, PUBLISHED_TAPS - 1, H * P), *memory

    def step(self, x_SKD: Tensor, state: State) -> tuple[Tensor, State]:
        u, c, _, tail = self._convolved(x_SKD[:, None], state[:-3])
        q, k, v, i, f = (tensor[:, :, 0] for tensor in self._project(u, c))
        h, written = _write(q, k, v, i, f, state[-3:])
        h = h if self.form != "adapted" else _recall(q, state)
        return self._finish(h[:, :, None], x_SKD[:, None], c)[:, 0], (*tail, *written)

    def read(self, x_SKD: Tensor, state: State) -> Tensor:
        if self.form != "adapted":
            return super().read(x_SKD, state)
        q = self._queries(x_SKD[:, None])
        return self._finish(_recall(q[:, :, 0], state)[:, :, None], x_SKD[:, None])[:, 0]

    def _prefetch_chunks(self, x_STKD: Tensor, state: State) -> Prefetched:
        u, c, tails, tail = self._convolved(x_STKD, state[:-3])
        q, k, v, i, f = self._project(u, c)
        memory, state = prefetch_chunks(k, v, i, f, state[-3:], self.chunk)
        h = recall_by_chunk(q, memory) if self.form == "adapted" else recall_by_chunk(q, memory, k, v, i, f)
        return Prefetched(self._finish(h, x_STKD, c), (memory, tails), (*tail, *state))

    def retrieve(self, x_STKD: Tensor, prefetched: Prefetched) -> Tensor:
        memory, tails = prefetched.memory
        q, own, c = self._noisy(x_STKD, tails)
        if isinstance(memory, Scanned):
            (read,), _, _ = kernels.scan("simple_gla", memory.written, [q])
            return self._finish(recall_before(q, read, memory.m, *own), x_STKD, c)
        return self._finish(recall_by_chunk(q, memory, *own), x_STKD, c)

    def _scan(
        self, clean_STKD: Tensor, noisy_SQKD: Tensor | None, state: State
    ) -> tuple[Tensor, Tensor | None, tuple[Scanned, Tensor | None], State]:
        u, c, tails, tail = self._convolved(clean_STKD, state[:-3])
        q, *tokens = self._project(u, c)
        memory, m = lay_out(*tokens, state[-3:])
        y_SQKD, readers = None, []
        if noisy_SQKD is not None:
            asked, own, c_noisy = self._noisy(noisy_SQKD, tails)
            readers = [asked]
        if self.form == "adapted":  # clean frames read before they write, as noisy ones do
            (read, *recalled), _, M = kernels.scan("simple_gla", memory.written, [q, *readers])
            h = recall_before(q, read, memory.m)
        else:
            recalled, read, M = kernels.scan("simple_gla", memory.written, readers, q)
            h = recall(read, m)
        if noisy_SQKD is not None:
            y_SQKD = self._finish(recall_before(asked, *recalled, memory.m, *own), noisy_SQKD, c_noisy)
        after = M[..., :-1, :], M[..., -1, :], m[:, :, -1, -1]
        return self._finish(h, clean_STKD, c), y_SQKD, (memory, tails), (*tail, *after)

    def _noisy(self, x_STKD: Tensor, tails: Tensor | None) -> tuple[Tensor, list[Tensor], Tensor | None]:
        """Return the queries of noisy frames, k, v and gates of their own tokens if they read these, and c."""
        if tails is None:
            return self._queries(x_STKD), [], None
        u = self.up(x_STKD)
        c = convolve_apart(u, tails, self.conv_weight, self.conv_bias, silu=True)
        q, *own = self._project(u, c)
        return q, own, c

    def _convolved(self, x_STKD: Tensor, tail: State) -> tuple[Tensor, Tensor | None, Tensor | None, State]:
        """Return the cell's inputs u and c for consecutive frames, the tails before them, and the last tail."""
        if self.form == "adapted":
            return x_STKD, None, None, ()
        u = self.up(x_STKD)
        c, tails, last = convolve_clip(u, tail[0], self.conv_weight, self.conv_bias, silu=True)
        return u, c, tails, (last,)

    def _project(self, u: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return q, k, v as [S, H, T, K, P] and the logarithms of both gates as [S, H, T, K]."""
        if c is None:
            gated, qkv = u, self.qkv(u)
        else:
            gated = qkv = _in_blocks(torch.cat([c, c, u], -1), self.qkv_blocks)
        q, k, v = qkv.unflatten(-1, (3, self.heads, self.head_dim)).permute(3, 0, 4, 1, 2, 5).contiguous().unbind(0)
        i, f = self.gates(gated).permute(0, 3, 1, 2).chunk(2, 1)
        return q, k / math.sqrt(self.head_dim), v, i, F.logsigmoid(f)

    def _queries(self, x_STKD: Tensor) -> Tensor:
        """Return q only, for frames that do not write."""
        q = F.linear(x_STKD, self.qkv.weight[: self.heads * self.head_dim])
        return q.unflatten(-1, (self.heads, self.head_dim)).permute(0, 3, 1, 2, 4)

    def _finish(self, h_SHTKP: Tensor, x_STKD: Tensor, c: Tensor | None = None) -> Tensor:
        h = h_SHTKP.permute(0, 2, 3, 1, 4)
        if c is None:
            h = h.flatten(3)
            return self.output(F.rms_norm(h, h.shape[-1:], self.norm) * self.open(x_STKD).sigmoid())
        h = self.norm * F.layer_norm(h, h.shape[-1:]).flatten(3) + self.skip * c
        return self.output(h * F.silu(self.open(x_STKD)))


def _in_blocks(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply by a matrix of diagonal blocks, weight [blocks, out, in]."""
    return torch.einsum("...bi,boi->...bo", x.unflatten(-1, (len(weight), -1)), weight).flatten(-2)


@in_full_precision  # a quotient of sums that may cancel
def _recall(q: Tensor, state: State) -> Tensor:
    """Return h [S, H, K, P] for queries q of that shape."""
    C, n, m = state
    largest = m.clamp(min=0)[..., None, None]  # log of the larger of exp(m), the weight of C, and 1
    q = torch.exp(m[..., None, None] - largest) * q
    return q @ C.transpose(-1, -2) / torch.maximum((q @ n[..., None]).abs(), torch.exp(-largest))


def _write(q: Tensor, k: Tensor, v: Tensor, log_i: Tensor, log_f: Tensor, state: State) -> tuple[Tensor, State]:
    """Write the K tokens of a frame in order; q, k, v [S, H, K, P], gates [S, H, K].

    Return what each token reads once it has written, [S, H, K, P], and the last state.
    """
    C, n, m = state
    read = []
    for token in range(k.shape[2]):
        k_t, v_t, i, f = k[:, :, token], v[:, :, token], log_i[..., token], log_f[..., token]
        larger = torch.maximum(f + m, i)
        keep, add = torch.exp(f + m - larger), torch.exp(i - larger)
        C = keep[..., None, None] * C + (add[..., None] * v_t)[..., :, None] * k_t[..., None, :]
        n = keep[..., None] * n + add[..., None] * k_t
        m = larger
        read.append(_recall(q[:, :, token : token + 1], (C, n, m)))
    return torch.cat(read, 2), (C, n, m)
