"""Temporal attention over all tokens of the window's frames, at a cost linear in the clip.

Consecutive frames form bands. The queries of a band attend to those frames that any of them sees, and to no others.
One band that holds every frame is attention with a dense mask, the slow form that the tests bind the bands to.

Letters: B videos, T frames, N tokens a frame, H heads, P channels a head; G bands of Q query and K key frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

CPU = torch.device("cpu")
SMALLEST_BAND = 8  # frames; smaller ones cost more calls than they save products


@dataclass(frozen=True)
class Bands:
    """Which frames each band holds, padded to equal counts."""

    query_GQ: Tensor  # frames of the pass; padding repeats the band's last
    key_GK: Tensor  # key frames; padding is not visible
    visible_GQK: Tensor
    place_T: Tensor  # where each frame of the pass stands among the queries of all bands


def make_bands(visible_TS: NDArray[np.bool_], clean: int, size: int, device: torch.device = CPU) -> Bands:
    """Divide T query frames, the first `clean` of them clean, into bands of at most `size` frames.

    `visible_TS` says which of S key frames each query frame sees. Clean and noisy frames see different frames, so no
    band holds both. NumPy computes the bands, so that nothing is read from a GPU.
    """
    visible = np.asarray(visible_TS)
    T = len(visible)
    starts = [*range(0, clean, size), *range(clean, T, size)]
    queries = [np.arange(a, b) for a, b in zip(starts, [*starts[1:], T], strict=True)]
    keys = [np.flatnonzero(visible[query].any(0)) for query in queries]
    Q, K = max(map(len, queries)), max(map(len, keys))
    query_GQ = np.stack([np.pad(query, (0, Q - len(query)), mode="edge") for query in queries])
    key_GK = np.stack([np.pad(key, (0, K - len(key))) for key in keys])
    real_GK = np.arange(K) < np.array([len(key) for key in keys])[:, None]
    visible_GQK = visible[query_GQ[:, :, None], key_GK[:, None]] & real_GK[:, None]
    place_T = np.concatenate([number * Q + np.arange(len(query)) for number, query in enumerate(queries)])
    return Bands(*(torch.from_numpy(part).to(device) for part in (query_GQ, key_GK, visible_GQK, place_T)))


def attend_in_bands(q_BNTHP: Tensor, k_BNSHP: Tensor, v_BNSHP: Tensor, bands: Bands) -> Tensor:
    """Attend from every token of each frame to every token of the frames it sees. Returns [B, N, T, H, P]."""
    B, N, _, H, P = q_BNTHP.shape
    G, Q = bands.query_GQ.shape
    K = bands.key_GK.shape[1]

    def gathered(x_BNTHP: Tensor, frame_GT: Tensor, frames: int) -> Tensor:
        x = x_BNTHP[:, :, frame_GT]  # [B, N, G, frames, H, P]
        return x.permute(2, 0, 4, 3, 1, 5).reshape(G, B * H, frames * N, P)

    mask = bands.visible_GQK.repeat_interleave(N, 1).repeat_interleave(N, 2)[:, None]
    q = gathered(q_BNTHP, bands.query_GQ, Q)
    k, v = (gathered(x, bands.key_GK, K) for x in (k_BNSHP, v_BNSHP))
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    y = y.reshape(G, B, H, Q, N, P).permute(1, 4, 0, 3, 2, 5).reshape(B, N, G * Q, H, P)
    return y[:, :, bands.place_T]
