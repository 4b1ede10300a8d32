"""Kimi Delta Attention in chunks of frames: Gated DeltaNet's (`gated_deltanet.py`) with a decay for each channel.

If M_0 enters a chunk and g_l = a_1 * ... * a_l by channel of the keys, the memory after token l of the chunk is

    M_l = M_0 diag(g_l) + sum_{j <= l} w_j (k_j * g_l / g_j)^T
    w_l = b_l (v_l - M_0 (g_l * k_l) - sum_{j < l} w_j (k_j * g_l / g_j) . k_l)

The second line is a triangular system. Ratios of decays are taken for each pair of tokens, since 1 / g_j alone may be
larger than any number. That is exact, at the price of L x L x P numbers a chunk. A frame reads M after the last token
before the frame.

Letters: S sequences, H heads, N tokens, C chunks of L tokens, F frames a chunk of K tokens each, P channels a head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rad_bench.blocks.fast.gated_deltanet import in_chunks, solve_chunks
from rad_bench.blocks.memory import in_full_precision


@dataclass(frozen=True)
class Memory:
    """Clean frames as `retrieve` reads them."""

    keys: Tensor  # [S, H, C, F, L, P]: each token's key as it has decayed before each frame; 0 if written later
    w: Tensor  # [S, H, C, 1, L, P]: what each token writes at its key
    entering: Tensor  # [S, H, C, 1, P, P]: M before each chunk
    decay: Tensor  # [S, H, C, F, 1, P]: of it, before each frame


@in_full_precision
def write_chunks(k: Tensor, v: Tensor, log_a: Tensor, b: Tensor, M: Tensor, K: int) -> tuple[Memory, Tensor]:
    """Write the chunks in order, K tokens a frame; k, v, log_a [S, H, C, L, P], b [S, H, C, L, 1], M [S, H, P, P].

    Return what `read` needs, and the last M.
    """
    log_g = log_a.cumsum(-2)
    at_end = log_g[..., -1:, :]
    decayed_bk, decayed_k = b * k * log_g.exp(), k * (at_end - log_g).exp()
    w, entering, M = solve_chunks(_system(k, log_g, b), b * v, decayed_bk, decayed_k, at_end.exp(), M)
    L = k.shape[3]
    before = F.pad(log_g[..., K - 1 : -1 : K, :], (0, 0, 1, 0))  # [S, H, C, F, P]
    token, first = torch.arange(L, device=k.device), torch.arange(0, L, K, device=k.device)
    keys = k[..., None, :, :] * _ratio(before, log_g) * (token < first[:, None])[..., None]
    return Memory(keys, w[:, :, :, None], entering[:, :, :, None], before.exp()[..., None, :]), M


def read(q: Tensor, memory: Memory, skipped: int) -> Tensor:
    """Return h [S, H, N, P] of queries of that shape, which start `skipped` tokens after the memory's first token."""
    F_, L = memory.keys.shape[3:5]
    chunks, ahead = divmod(skipped, L)
    tensors = memory.keys, memory.w, memory.entering, memory.decay
    keys, w, entering, decay = (tensor[:, :, chunks:] for tensor in tensors) if chunks else tensors
    q_SHCFKP = in_chunks(F.pad(q, (0, 0, ahead, 0)) if ahead else q, L).unflatten(3, (F_, -1))
    h = (decay * q_SHCFKP) @ entering.mT + (q_SHCFKP @ keys.mT) @ w
    return h.flatten(2, 4)[:, :, ahead : ahead + q.shape[2]]


def read_and_own(
    memory: Memory, skipped: int, K: int, q: Tensor, k: Tensor, v: Tensor, log_a: Tensor, b: Tensor
) -> Tensor:
    """Return h [S, H, N, P] of tokens that read after they have written, with the earlier tokens of their frame.

    Each frame has its own copy of the memory before it, so clean and noisy frames are computed alike. `skipped` as in
    `read`; q, k, v, log_a [S, H, N, P], b [S, H, N, 1].
    """
    q, k, v, log_a, b = (tensor.unflatten(2, (-1, K)) for tensor in (q, k, v, log_a, b))
    log_g = log_a.cumsum(-2)
    recalled = ((tensor * log_g.exp()).flatten(2, 3) for tensor in (q, k))
    recalled_q, recalled_k = (read(tensor, memory, skipped).unflatten(2, (-1, K)) for tensor in recalled)
    return _own(q, k, v, log_g, b, recalled_q, recalled_k).flatten(2, 3)


@in_full_precision
def _own(q: Tensor, k: Tensor, v: Tensor, log_g: Tensor, b: Tensor, recalled_q: Tensor, recalled_k: Tensor) -> Tensor:
    """Read after writing within frames: one triangular system for the K tokens of each; all [S, H, T, K, ...]."""
    w = torch.linalg.solve_triangular(_system(k, log_g, b), b * (v - recalled_k), upper=False, unitriangular=True)
    return recalled_q + _products(q, k, log_g).tril() @ w


def _system(k: Tensor, log_g: Tensor, b: Tensor) -> Tensor:
    """Return the matrix of the triangular system, [..., L, L]; what solves it ignores the diagonal and above."""
    return b * _products(k, k, log_g)


def _products(x: Tensor, k: Tensor, log_g: Tensor) -> Tensor:
    """Return x_l . (k_j * g_l / g_j) for each pair of tokens l >= j, [..., L, L]."""
    return torch.einsum("...lp,...jp,...ljp->...lj", x, k, _ratio(log_g, log_g))


def _ratio(later: Tensor, earlier: Tensor) -> Tensor:
    """Return exp(later - earlier) for each pair [..., F, P], [..., L, P]: [..., F, L, P]; at most 1."""
    return (later[..., :, None, :] - earlier[..., None, :, :]).clamp(max=0).exp()
