"""Memories by flash-linear-attention's Triton kernels, where they are installed.

Three functions of the package (MIT) are used, of its part `fla-core`. They compute a sequence of tokens, each of which
reads after it has written:

    gated_deltanet   M = a M (I - b k k^T) + b v k^T,   h = M q
    kda              the same, with a decay a for each channel of k
    simple_gla       M = a M + b v k^T,                 h = M q        (mLSTM, Mamba-3)

A token with a = 1 and b = 0 writes nothing and only reads. So a clip becomes one sequence, in which the tokens of each
clean frame follow those that read the memory before it, and one call serves clean and noisy frames:

    readers of frame 0, frame 0, readers of frame 1, frame 1, ...

Tested in fp32 and bf16 against the reference by Triton's interpreter on the CPU (`tests/blocks/test_fla_kernels.py`).
They have not run on a GPU yet: run `rad-bench check` there first.

Letters: S sequences, T or Q frames, K tokens a frame, H heads, N channels of a key, P channels of a value.
"""

from __future__ import annotations

import functools
import importlib
import os
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rad_bench.blocks.fast import kernels
from rad_bench.blocks.memory import MemoryBlock, Path, Prefetched, State

RULES = {
    "gated_deltanet": ("fla.ops.gated_delta_rule", "chunk_gated_delta_rule"),
    "kda": ("fla.ops.kda", "chunk_kda"),
    "simple_gla": ("fla.ops.simple_gla", "chunk_simple_gla"),
}
SOLVERS = "fla.ops.gated_delta_rule.chunk_fwd", "fla.ops.kda.chunk_intra"
ALIGNED = 8  # channels are padded to a multiple of it: simple_gla refuses odd numbers in bf16, and 8 are 16 bytes


@dataclass(frozen=True)
class Written:
    """Clean frames as they are written, in order: what noisy ones read is computed from these."""

    k: Tensor  # [S, H, T, K, N]
    v: Tensor  # [S, H, T, K, P]
    log_a: Tensor  # [S, H, T, K, 1], or N
    b: Tensor  # [S, H, T, K, 1]
    M: Tensor  # [S, H, P, N]: before the first of them


class ScannedBlock(MemoryBlock):
    """A block that computes a clip by one call of a kernel, where it can, and in chunks otherwise."""

    def path(self, device: torch.device, dtype: torch.dtype) -> Path:
        why_not = self._no_kernels(device, dtype)
        if why_not:
            return Path("PyTorch, in chunks", f"flash-linear-attention's kernels not used: {why_not}")
        why = f"{dtype} on {device.type}, and they can be imported"
        return Path("flash-linear-attention's Triton kernels", why)

    def prefetch(self, x_STKD: Tensor, state: State) -> Prefetched:
        if self._no_kernels(x_STKD.device, x_STKD.dtype):
            return self._prefetch_chunks(x_STKD, state)
        y_STKD, _, memory, after = self._scan(x_STKD, None, state)
        return Prefetched(y_STKD, memory, after)

    def remember(
        self, clean_STKD: Tensor, noisy_SQKD: Tensor | None, state: State
    ) -> tuple[Tensor, Tensor | None, State]:
        if self._no_kernels(clean_STKD.device, clean_STKD.dtype):
            return super().remember(clean_STKD, noisy_SQKD, state)
        y_STKD, y_SQKD, _, after = self._scan(clean_STKD, noisy_SQKD, state)
        return y_STKD, y_SQKD, after

    def _no_kernels(self, device: torch.device, dtype: torch.dtype) -> str:
        """Return why no kernels are used; empty if they are."""
        return unavailable(device, dtype)

    @abstractmethod
    def _prefetch_chunks(self, x_STKD: Tensor, state: State) -> Prefetched:
        """Do `prefetch` in PyTorch."""

    @abstractmethod
    def _scan(
        self, clean_STKD: Tensor, noisy_SQKD: Tensor | None, state: State
    ) -> tuple[Tensor, Tensor | None, Any, State]:
        """Do `remember` by one call of `scan`; return also what `retrieve` reads, the second last."""


@torch.compiler.assume_constant_result  # the compiler runs it; it cannot trace the search for packages
def unavailable(device: torch.device, dtype: torch.dtype) -> str:
    """Return why the kernels cannot be used on this device and type; empty if they can."""
    if why := kernels.unavailable(device, dtype):
        return why
    rules = load()
    return rules if isinstance(rules, str) else ""


@functools.cache
def load() -> dict[str, Callable[..., Any]] | str:
    """Return the package's function for each rule, or why they cannot be used."""
    # By default Triton rounds fp32 factors to TF32 and PyTorch does not. Both must compute in fp32.
    os.environ.setdefault("TRITON_F32_DEFAULT", "ieee")
    if why := kernels.missing(("triton", "triton"), ("fla", "fla-core")):
        return why
    try:
        # The triangular systems of the delta rules ask for TF32 by themselves.
        for solver in map(importlib.import_module, SOLVERS):
            precise = type(solver.SOLVE_TRIL_DOT_PRECISION)("ieee")
            solver.SOLVE_TRIL_DOT_PRECISION = precise  # type: ignore[attr-defined]
        gradients = importlib.import_module("fla.ops.common.chunk_o")  # it raises an error in the backward pass
        if gradients.IS_NVIDIA_HOPPER and gradients.TRITON_ABOVE_3_4_0 and not gradients.TRITON_ABOVE_3_7_1:
            return "on Hopper GPUs their gradients are wrong with Triton 3.4 to 3.7.0"
        return {rule: getattr(importlib.import_module(module), name) for rule, (module, name) in RULES.items()}
    except Exception as error:  # a broken installation can raise anything
        return f"fla-core cannot be imported: {type(error).__name__}: {error}"


@torch.compiler.disable  # type: ignore[untyped-decorator]  # the kernels are not tested under torch.compile
def scan(
    rule: str, written: Written, readers: Sequence[Tensor], q: Tensor | None = None
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Write frames; gradients flow to every tensor.

    `readers` are queries [S, H, Q, any number, N] of the last frames, which read the memory before their frame; `q`, of
    the written tokens, read after each. Return what the readers and q have read, [S, H, ..., P], and the last M. M is
    carried in fp32. Under autocast q, k and v are rounded to its type, and so is what is read.
    """
    rules = load()
    assert not isinstance(rules, str)
    (S, H, T, K, N), P = written.k.shape, written.v.shape[-1]
    own = torch.zeros_like(written.k) if q is None else q
    queries = torch.cat([*(F.pad(x, (0, 0, 0, 0, T - x.shape[2], 0)) for x in readers), own], 3)
    k, v, M = written.k, written.v, written.M.float()
    if rule == "simple_gla":
        queries, k, v = (F.pad(x, (0, -x.shape[-1] % ALIGNED)) for x in (queries, written.b * k, v))
        M = F.pad(M, (0, -N % ALIGNED, 0, -P % ALIGNED))
    first = queries.shape[3] - K  # of a frame's written tokens: those before have k = v = log a = b = 0
    k, v, log_a, b = (F.pad(x, (0, 0, first, 0)) for x in (k, v, written.log_a.float(), written.b.float()))
    if torch.is_autocast_enabled(k.device.type):
        queries, k, v = (x.to(torch.get_autocast_dtype(k.device.type)) for x in (queries, k, v))
    queries, k, v, log_a, b = (x.movedim(1, 3).flatten(1, 2) for x in (queries, k, v, log_a, b))
    inputs = {"q": queries, "k": k, "v": v, "g": log_a if rule == "kda" else log_a[..., 0], "initial_state": M}
    if rule != "simple_gla":
        inputs["beta"] = b[..., 0]
    read, finals = [], []
    for piece in kernels.pieces(S, H):
        h, M = rules[rule](
            **{name: x[piece] for name, x in inputs.items()}, scale=1.0, output_final_state=True, state_v_first=True,
        )  # fmt: skip
        read.append(h)
        finals.append(M.to(written.M.dtype))
    h = kernels.concatenate(read)[..., :P].unflatten(1, (T, -1)).movedim(3, 1)
    *answers, h = h.split([*(x.shape[3] for x in readers), K], 3)
    answers = [answer[:, :, T - x.shape[2] :] for answer, x in zip(answers, readers, strict=True)]
    return answers, h, kernels.concatenate(finals)[..., :P, :N]
