"""Kimi Delta Attention in chunks of frames: Gated DeltaNet's (`gated_deltanet.py`) with a decay for each channel.

If M_0 enters a chunk and g_l = a_1 * ... * a_l by channel of the keys, the memory after token l of the chunk is

    M_l = M_0 diag(g_l) + sum_{j <= l} w_j (k_j * g_l / g_j)^T
    w_l = b_l (v_l - M_0 (g_l * k_l) - sum_{j < l} w_j (k_j * g_l / g_j) . k_l)

The second line is a triangular system. Ratios of decays are taken for each pair of tokens, since 1 / g_j alone may be
larger than any number. That is exact, at the price of L x L x P numbers a chunk, which are computed again in the
backward pass and not kept. A frame reads M after the last token before the frame.

Letters: S sequences, H heads, N tokens, C chunks of L tokens, F frames a chunk of K tokens each, P channels a head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rad_bench.blocks.fast.gated_deltanet import in_chunks, solve_chunks
from rad_bench.blocks.memory import in_full_precision


@dataclass(frozen=True)
class Memory:
    """Clean frames as `retrieve` reads them."""

    k: Tensor  # [S, H, C, L, P]
    log_g: Tensor  # likewise
    w: Tensor  # [S, H, C, L, P]: what each token writes at its key
    entering: Tensor  # [S, H, C, P, P]: M before each chunk
    log_decay: Tensor  # [S, H, C, F, P]: of it, before each frame


@in_full_precision
def write_chunks(k: Tensor, v: Tensor, log_a: Tensor, b: Tensor, M: Tensor, K: int) -> tuple[Memory, Tensor]:
    """Write the chunks in order, K tokens a frame; k, v, log_a [S, H, C, L, P], b [S, H, C, L, 1], M [S, H, P, P].

    Return what `read` needs, and the last M.
    """
    log_g = log_a.cumsum(-2)
    at_end = log_g[..., -1:, :]
    decayed_bk, decayed_k = b * k * log_g.exp(), k * (at_end - log_g).exp()
    w, entering, M = solve_chunks(_system(k, log_g, b), b * v, decayed_bk, decayed_k, at_end.exp(), M)
    before = F.pad(log_g[..., K - 1 : -1 : K, :], (0, 0, 1, 0))
    return Memory(k, log_g, w, entering, before), M


def read(q: Tensor, memory: Memory, skipped: int) -> Tensor:
    """Return h [S, H, N, P] of queries of that shape, which start `skipped` tokens after the memory's first token."""
    L, F_ = memory.k.shape[3], memory.log_decay.shape[3]
    chunks, ahead = divmod(skipped, L)
    tensors = memory.k, memory.log_g, memory.w, memory.entering, memory.log_decay
    k, log_g, w, entering, log_decay = (tensor[:, :, chunks:] for tensor in tensors) if chunks else tensors
    q_SHCFKP = in_chunks(F.pad(q, (0, 0, ahead, 0)) if ahead else q, L).unflatten(3, (F_, -1))
    token, first = torch.arange(L, device=q.device), torch.arange(0, L, L // F_, device=q.device)
    earlier = token < first[:, None, None]  # [F, 1, L]: tokens of frames before
    # Products are taken with the frames of a chunk side by side: matmul would copy M and w for each of them.
    decayed = (log_decay.exp()[..., None, :] * q_SHCFKP).flatten(3, 4)
    products = (_products(q_SHCFKP, k, log_decay, log_g) * earlier).flatten(3, 4)
    return (decayed @ entering.mT + products @ w).flatten(2, 3)[:, :, ahead : ahead + q.shape[2]]


def asked(K: int, q: Tensor, k: Tensor, v: Tensor, log_a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return the two queries that tokens put to the memory before their frame, for `own`: M has decayed since."""
    decay = log_a.unflatten(2, (-1, K)).cumsum(-2).exp().flatten(2, 3)
    return q * decay, k * decay


def own(
    K: int, q: Tensor, k: Tensor, v: Tensor, log_a: Tensor, b: Tensor, recalled_q: Tensor, recalled_k: Tensor
) -> Tensor:
    """Return h [S, H, N, P] of tokens that read after they have written, with the earlier tokens of their frame.

    Each frame has its own copy of the memory before it, so clean and noisy frames are computed alike. `recalled_q` and
    `recalled_k` are what the two queries of `asked` have read; they, q, k, v, log_a are [S, H, N, P], b [S, H, N, 1].
    """
    frames = (tensor.unflatten(2, (-1, K)) for tensor in (q, k, v, log_a, b, recalled_q, recalled_k))
    return _own(*frames).flatten(2, 3)


@in_full_precision
def _own(q: Tensor, k: Tensor, v: Tensor, log_a: Tensor, b: Tensor, recalled_q: Tensor, recalled_k: Tensor) -> Tensor:
    """Read after writing within frames: one triangular system for the K tokens of each; all [S, H, T, K, ...]."""
    log_g = log_a.cumsum(-2)
    w = torch.linalg.solve_triangular(_system(k, log_g, b), b * (v - recalled_k), upper=False, unitriangular=True)
    return recalled_q + _products_of_tokens(q, k, log_g).tril() @ w


def _system(k: Tensor, log_g: Tensor, b: Tensor) -> Tensor:
    """Return the matrix of the triangular system, [..., L, L]; what solves it ignores the diagonal and above."""
    return b * _products_of_tokens(k, k, log_g)


def _products_of_tokens(x: Tensor, k: Tensor, log_g: Tensor) -> Tensor:
    """Return x_l . (k_j * g_l / g_j) for each pair of tokens l >= j, [..., L, L]."""
    return _products(x[..., None, :], k, log_g, log_g)[..., 0, :]


def _products(x: Tensor, k: Tensor, later: Tensor, earlier: Tensor) -> Tensor:
    """Return the products of x with the keys as they have decayed, and keep nothing else for the backward pass.

    x [..., F, K, P] of frames until which decay is exp(later), [..., F, P]; k [..., L, P] of tokens after which it is
    exp(earlier), likewise: [..., F, K, L].
    """
    if not torch.is_grad_enabled():
        return _decayed_products(x, k, later, earlier)
    products: Tensor = checkpoint(
        _decayed_products, x, k, later, earlier, use_reentrant=False, preserve_rng_state=False
    )
    return products


def _decayed_products(x: Tensor, k: Tensor, later: Tensor, earlier: Tensor) -> Tensor:
    ratio = (later[..., :, None, :] - earlier[..., None, :, :]).clamp(max=0).exp()
    return x @ (k[..., None, :, :] * ratio).mT
