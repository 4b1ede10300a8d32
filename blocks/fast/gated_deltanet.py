"""Gated DeltaNet in chunks of frames (Yang et al. 2024, arXiv 2406.06484).

If M_0 enters a chunk and g_l = a_1 ... a_l, the memory after token l of the chunk is

    M_l = g_l M_0 + sum_{j <= l} (g_l / g_j) w_j k_j^T
    w_l = b_l (v_l - g_l M_0 k_l - sum_{j < l} (g_l / g_j) (k_j . k_l) w_j)

The second line is a triangular system, so one solve gives all w of a chunk. The matrix is not inverted by its powers:
where keys are similar, these grow until fp32 cannot cancel them. A frame reads M after the last token before the frame.

Letters: S sequences, H heads, N tokens, C chunks of L tokens, K tokens a frame, P channels a head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rad_bench.blocks.memory import in_full_precision


@dataclass(frozen=True)
class Memory:
    """Clean frames as `retrieve` reads them."""

    k: Tensor  # [S, H, C, L, P]
    w: Tensor  # [S, H, C, L, P]: what each token writes at its key
    w_decay: Tensor  # [S, H, C, L, L]: g_l / g_j, where l is the last token before the frame of each token
    entering: Tensor  # [S, H, C, P, P]: M before each chunk
    decay: Tensor  # [S, H, C, L, 1]: g_l of it, at the same l


@in_full_precision
def write_chunks(k: Tensor, v: Tensor, log_a: Tensor, b: Tensor, M: Tensor, K: int) -> tuple[Memory, Tensor]:
    """Write the chunks in order, K tokens a frame; k, v [S, H, C, L, P], gates [S, H, C, L, 1], M [S, H, P, P].

    Return what `read` needs, and the last M.
    """
    log_g = log_a.cumsum(-2)
    decay = log_g.exp()  # of M_0, after each token
    w_decay = (log_g - log_g.mT).clamp(max=0).exp().tril()  # of w_j, after each token l >= j
    bk = b * k
    systems = w_decay * (bk @ k.mT)  # the solve uses the part below the diagonal, and ones on it
    w, entering, M = solve_chunks(systems, b * v, decay * bk, w_decay.mT[..., -1:] * k, decay[..., -1:, :], M)
    w_decay, decay = _before_frames(w_decay, K, 0.0), _before_frames(decay, K, 1.0)
    return Memory(k, w, w_decay, entering, decay), M


def solve_chunks(
    systems: Tensor, bv: Tensor, decayed_bk: Tensor, decayed_k: Tensor, decay_at_end: Tensor, M: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Solve the triangular systems of the chunks in order, all [S, H, C, L, ...].

    `decayed_bk`: as the chunk's M_0 has decayed at each token; `decayed_k`: as each key has at the chunk's end. Return
    w [S, H, C, L, P], M before each chunk [S, H, C, P, P], and the last M.
    """
    per_chunk = systems, bv, decayed_bk, decayed_k, decay_at_end
    entering, written = [], []
    for system, bv_L, bk_L, k_L, decay in zip(*(tensor.unbind(2) for tensor in per_chunk), strict=True):
        w = torch.linalg.solve_triangular(system, bv_L - bk_L @ M.mT, upper=False, unitriangular=True)
        entering.append(M)
        written.append(w)
        M = decay * M + w.mT @ k_L
    return torch.stack(written, 2), torch.stack(entering, 2), M


def _before_frames(after_token: Tensor, K: int, first: float) -> Tensor:
    """From values after each token of a chunk [..., L, :], return for each token the value before its frame."""
    return F.pad(after_token[..., K - 1 : -1 : K, :], (0, 0, 1, 0), value=first).repeat_interleave(K, -2)


def read(q: Tensor, memory: Memory, skipped: int) -> Tensor:
    """Return h [S, H, N, P] of queries of that shape, which start `skipped` tokens after the memory's first token."""
    L = memory.k.shape[3]
    chunks, ahead = divmod(skipped, L)
    tensors = memory.k, memory.w, memory.w_decay, memory.entering, memory.decay
    k, w, w_decay, entering, decay = (tensor[:, :, chunks:] for tensor in tensors) if chunks else tensors
    q_SHCLP = in_chunks(F.pad(q, (0, 0, ahead, 0)) if ahead else q, L)
    h = decay * (q_SHCLP @ entering.mT) + (w_decay * (q_SHCLP @ k.mT)) @ w
    return h.flatten(2, 3)[:, :, ahead : ahead + q.shape[2]]


def in_chunks(x_SHN: Tensor, L: int) -> Tensor:
    """Split [S, H, N, ...] into [S, H, C, L, ...], padded with zeros: such tokens neither decay nor write."""
    missing = -x_SHN.shape[2] % L
    return (F.pad(x_SHN, (0, 0, 0, missing)) if missing else x_SHN).unflatten(2, (-1, L))


def asked(K: int, q: Tensor, k: Tensor, v: Tensor, log_a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return the two queries that tokens put to the memory before their frame, for `own`."""
    return q, k


def own(
    K: int, q: Tensor, k: Tensor, v: Tensor, log_a: Tensor, b: Tensor, recalled_q: Tensor, recalled_k: Tensor
) -> Tensor:
    """Return h [S, H, N, P] of tokens that read after they have written, with the earlier tokens of their frame.

    Each frame has its own copy of the memory before it, so clean and noisy frames are computed alike. `recalled_q` and
    `recalled_k` are what the two queries of `asked` have read; they, q, k and v are [S, H, N, P], the gates
    [S, H, N, 1].
    """
    frames = (tensor.unflatten(2, (-1, K)) for tensor in (q, k, v, log_a, b, recalled_q, recalled_k))
    return _own(*frames).flatten(2, 3)


@in_full_precision
def _own(q: Tensor, k: Tensor, v: Tensor, log_a: Tensor, b: Tensor, recalled_q: Tensor, recalled_k: Tensor) -> Tensor:
    """Read after writing within frames: one triangular system for the K tokens of each; all [S, H, T, K, ...]."""
    log_g = log_a.cumsum(-2)
    w_decay = (log_g - log_g.mT).clamp(max=0).exp().tril()
    system = w_decay * (b * k @ k.mT)
    w = torch.linalg.solve_triangular(system, b * (v - log_g.exp() * recalled_k), upper=False, unitriangular=True)
    return log_g.exp() * recalled_q + (w_decay * (q @ k.mT)) @ w
