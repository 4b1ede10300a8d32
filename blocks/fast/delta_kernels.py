"""Gated DeltaNet and Kimi Delta Attention by flash-linear-attention's Triton kernels, where they are installed.

Two functions of the package (MIT) are used, of its part `fla-core`. They compute a sequence of tokens, each of which
reads after it has written. A token with a = 1 and b = 0 writes nothing and only reads. So a clip becomes one sequence,
in which the tokens of each clean frame follow those that read the memory before it, and one call serves clean and noisy
frames:

    readers of frame 0, frame 0, readers of frame 1, frame 1, ...

Tested in fp32 and bf16 against the reference by Triton's interpreter on the CPU (`tests/blocks/test_delta_kernels.py`).
They have not run on a GPU yet: run `rad-bench check` there first.

Letters: S sequences, T or Q frames, K tokens a frame, N tokens, H heads, P channels a head.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rad_bench.blocks.fast import kernels

LARGEST_HEAD = 256  # channels
RULES = {
    "gated_deltanet": ("fla.ops.gated_delta_rule", "chunk_gated_delta_rule"),
    "kda": ("fla.ops.kda", "chunk_kda"),
}
SOLVERS = "fla.ops.gated_delta_rule.chunk_fwd", "fla.ops.kda.chunk_intra"


@dataclass(frozen=True)
class Memory:
    """Clean frames as they are written, in order: what noisy ones read is computed from these."""

    k: Tensor  # [S, H, T * K, P]
    v: Tensor  # [S, H, T * K, P]
    log_a: Tensor  # [S, H, T * K, 1], or P
    b: Tensor  # [S, H, T * K, 1]
    M: Tensor  # [S, H, P, P]: before the first of them


@torch.compiler.assume_constant_result  # the compiler runs it; it cannot trace the search for packages
def unavailable(device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
    """Return why the kernels cannot be used on this device, type and size; empty if they can."""
    if why := kernels.unavailable(device, dtype):
        return why
    if head_dim > LARGEST_HEAD:
        return f"heads of more than {LARGEST_HEAD} channels"
    rules = load()
    return rules if isinstance(rules, str) else ""


@functools.cache
def load() -> dict[str, Callable[..., Any]] | str:
    """Return the package's function for each rule, or why they cannot be imported."""
    # By default Triton rounds fp32 factors to TF32 and PyTorch does not. Both must compute in fp32.
    os.environ.setdefault("TRITON_F32_DEFAULT", "ieee")
    if why := kernels.missing(("triton", "triton"), ("fla", "fla-core")):
        return why
    try:
        # The triangular systems ask for TF32 by themselves.
        for solver in map(importlib.import_module, SOLVERS):
            precise = type(solver.SOLVE_TRIL_DOT_PRECISION)("ieee")
            solver.SOLVE_TRIL_DOT_PRECISION = precise  # type: ignore[attr-defined]
        return {rule: getattr(importlib.import_module(module), name) for rule, (module, name) in RULES.items()}
    except Exception as error:  # a broken installation can raise anything
        return f"fla-core cannot be imported: {type(error).__name__}: {error}"


@torch.compiler.disable  # type: ignore[untyped-decorator]  # the kernels are not tested under torch.compile
def scan(
    rule: str, K: int, written: Memory, readers: Sequence[Tensor], q: Tensor | None = None
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Write frames of K tokens; gradients flow to every tensor.

    `readers` are queries [S, H, Q * K, P] of the last frames, which read the memory before their frame; `q`, of the
    written tokens, read after each. Return what the readers and what q have read, [S, H, ..., P], and the last M. M is
    carried in fp32. Under autocast q, k and v are rounded to its type, and so is what is read.
    """
    rules = load()
    assert not isinstance(rules, str)
    S, H, N = written.k.shape[:3]
    own = torch.zeros_like(written.k) if q is None else q
    queries = torch.cat([_by_frame(F.pad(x, (0, 0, N - x.shape[2], 0)), K) for x in (*readers, own)], 2)
    first = K * len(readers)  # of a frame's written tokens: those before have k = v = log a = b = 0
    k, v, log_a, b = (
        F.pad(_by_frame(x, K), (0, 0, 0, 0, first, 0)) for x in (written.k, written.v, written.log_a, written.b)
    )
    if torch.is_autocast_enabled(k.device.type):
        queries, k, v = (x.to(torch.get_autocast_dtype(k.device.type)) for x in (queries, k, v))
    queries, k, v, log_a, b = (x.flatten(1, 2) for x in (queries, k, v, log_a.float(), b[..., 0].float()))
    log_a = log_a if rule == "kda" else log_a[..., 0]
    read, finals = [], []
    for piece in kernels.pieces(S, H):
        h, M = rules[rule](
            queries[piece], k[piece], v[piece], log_a[piece], b[piece], scale=1.0,
            initial_state=written.M[piece].float(), output_final_state=True, state_v_first=True,
        )  # fmt: skip
        read.append(h)
        finals.append(M.to(written.M.dtype))
    h_STLHP = kernels.concatenate(read).unflatten(1, (-1, first + K))
    *answers, h = (x.flatten(1, 2).transpose(1, 2) for x in h_STLHP.split(K, 2))
    return [h[:, :, N - x.shape[2] :] for h, x in zip(answers, readers, strict=True)], h, kernels.concatenate(finals)


def _by_frame(x_SHN: Tensor, K: int) -> Tensor:
    """Rearrange [S, H, T * K, ...] as the kernels have it: [S, T, K, H, ...]."""
    return x_SHN.transpose(1, 2).unflatten(1, (-1, K))
