"""Mamba2 by mamba-ssm's Triton kernels, where they are installed.

Two functions of the package (Apache-2.0) are used, and they need only Triton. `import mamba_ssm` itself also requires
a compiled extension and transformers, so the two modules are imported under an empty parent package.

Tested in fp32 against the reference by Triton's interpreter on the CPU (`tests/blocks/test_mamba2_kernels.py`). They
have not run on a GPU or in bf16 yet: run `rad-bench check mamba2` there first.

Letters: S sequences, T or Q frames, K tokens a frame, L tokens, H heads, P channels a head, N state channels a channel.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import sys
import types
from collections.abc import Callable
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from rad_bench.blocks.fast import kernels
from rad_bench.blocks.fast.kernels import concatenate, pieces
from rad_bench.blocks.fast.mamba2 import Memory, Tokens

SMALLEST_CHUNK = 16  # tokens; the kernels' smallest tile
MODULES = ("mamba_ssm.ops.triton.ssd_combined", "mamba_ssm.ops.triton.selective_state_update")


@torch.compiler.assume_constant_result  # the compiler runs it; it cannot trace the search for packages
def unavailable(device: torch.device, dtype: torch.dtype) -> str:
    """Return why the kernels cannot be used on this device and type; empty if they can."""
    if why_not := kernels.unavailable(device, dtype):
        return why_not
    functions = load()
    return functions if isinstance(functions, str) else ""


@functools.cache
def load() -> tuple[Callable[..., Any], Callable[..., Any]] | str:
    """Return mamba-ssm's chunked scan and single update, or why they cannot be imported."""
    # By default Triton rounds fp32 factors to TF32 and PyTorch does not. Both must compute in fp32.
    os.environ.setdefault("TRITON_F32_DEFAULT", "ieee")
    if why := kernels.missing(("triton", "triton"), ("mamba_ssm", "mamba-ssm")):
        return why
    stub = None
    if "mamba_ssm" not in sys.modules:
        spec = importlib.util.find_spec("mamba_ssm")
        assert spec is not None
        stub = types.ModuleType("mamba_ssm")
        stub.__path__ = list(spec.submodule_search_locations or [])
        sys.modules["mamba_ssm"] = stub
    try:
        combined, update = map(importlib.import_module, MODULES)
        return combined.mamba_chunk_scan_combined, update.selective_state_update
    except Exception as error:  # a broken installation can raise anything
        return f"mamba-ssm cannot be imported: {type(error).__name__}: {error}"
    finally:
        if stub is not None:
            sys.modules.pop("mamba_ssm", None)  # a later import gets the real package


def scan(
    x_SLHP: Tensor, B_SLN: Tensor, C_SLN: Tensor, dt_SLH: Tensor, A_H: Tensor, ssm_SHPN: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    """Return y_SLHP and the state after the last token; gradients flow to every tensor.

        S_l = exp(dt_l A) S_{l-1} + dt_l x_l B_l^T,   y_l = S_l C_l

    States are carried in fp32. Under autocast x, B and C are rounded to its type, and so is y.
    """
    chunked_scan = load()[0]
    assert callable(chunked_scan)
    device, S, L = x_SLHP.device.type, *x_SLHP.shape[:2]
    if torch.is_autocast_enabled(device):
        x_SLHP, B_SLN, C_SLN = (tensor.to(torch.get_autocast_dtype(device)) for tensor in (x_SLHP, B_SLN, C_SLN))
    chunk = min(chunk, max(SMALLEST_CHUNK, 1 << (L - 1).bit_length()))
    outputs, finals = [], []
    for piece in pieces(S, -(-L // chunk)):
        y, final = chunked_scan(
            x_SLHP[piece], dt_SLH[piece].float(), A_H.float(), B_SLN[piece, :, None], C_SLN[piece, :, None], chunk,
            initial_states=ssm_SHPN[piece].float(), return_final_states=True,
        )  # fmt: skip
        outputs.append(y)
        finals.append(final.to(ssm_SHPN.dtype))
    return concatenate(outputs), concatenate(finals)


@torch.compiler.disable  # the package's kernels are not tested under torch.compile, so it must not trace them
def scan_frames(written: Tokens, C_STKN: Tensor, A_log: Tensor, ssm: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """Write the tokens of frames and read after each token with `C_STKN`: return y_STKHP and the last SSM state."""
    y_SLHP, ssm = scan(
        written.x_STKHP.flatten(1, 2), written.B_STKN.flatten(1, 2), C_STKN.flatten(1, 2),
        written.dt_STKH.flatten(1, 2), -A_log.exp(), ssm, chunk,
    )  # fmt: skip
    return y_SLHP.unflatten(1, C_STKN.shape[1:3]), ssm


def read(queries: Tokens, memory: Memory, A_log: Tensor, chunk: int) -> Tensor:
    """Compute `mamba2.read` by one scan of the clean tokens, delayed by a frame, with the query frames' C.

    In that scan, query token (t, k) reads what the clean frames wrote up to token (t-1, k). K more tokens complete its
    read: the later tokens of clean frame t-1, then the tokens of its own frame up to itself.
    """
    T, K = memory.tokens.dt_STKH.shape[1:3]
    Q = queries.dt_STKH.shape[1]
    late = memory.tokens.map(lambda tensor: _pad_frames(tensor[:, :-1], 1))
    y, _ = scan_frames(late, _pad_frames(queries.C_STKN, T - Q), A_log, memory.entering[0], chunk)
    late = late.frames(slice(T - Q, T))

    passed = torch.cat([late.dt_STKH, queries.dt_STKH], 2) * -A_log.exp()
    passed = rearrange(passed.cumsum(2), "s q l h -> s q h l")  # log decay, inclusive: frame t-1, then the query's
    here = passed[..., K:, None]
    y = rearrange((here[..., 0] - passed[..., :K]).exp(), "s q h k -> s q k h 1") * y[:, T - Q :]

    key = torch.arange(2 * K, device=y.device)
    within = (key > key[:K, None]) & (key <= key[K:, None])
    decay = (here - passed[..., None, :]).masked_fill(~within, -torch.inf).exp()
    scores = torch.einsum("sqkn,sqln->sqkl", queries.C_STKN, torch.cat([late.B_STKN, queries.B_STKN], 2))
    values = torch.cat([frames.dt_STKH[..., None] * frames.x_STKHP for frames in (late, queries)], 2)
    return y + torch.einsum("sqhkl,sqlhp->sqkhp", scores[:, :, None] * decay, values)


def _pad_frames(x_STK: Tensor, frames: int) -> Tensor:
    """Prepend frames of zeros to a tensor [S, T, ...]: where dt is 0, a token neither decays nor writes."""
    return torch.cat([x_STK.new_zeros(x_STK.shape[0], frames, *x_STK.shape[2:]), x_STK], 1)


@torch.compiler.disable  # as `scan_frames`
def update(
    x_SKHP: Tensor, B_SKN: Tensor, C_SKN: Tensor, dt_SKH: Tensor, A_H: Tensor, ssm_SHPN: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute what `scan` does token by token: faster for few tokens, and without gradients."""
    single_update = load()[1]
    assert callable(single_update)
    S, K, H, P = x_SKHP.shape
    ssm_SHPN = ssm_SHPN.clone()  # the kernel writes to it
    A_HPN = A_H[:, None, None].expand(ssm_SHPN.shape[1:])
    zero_HP = dt_SKH.new_zeros(H, 1).expand(H, P)  # zero skip and bias: mamba-ssm 2.3.1 raises if either is missing
    y_SKHP = torch.empty_like(x_SKHP)
    for piece in pieces(S, 1):
        for k in range(K):
            dt = dt_SKH[piece, k, :, None].expand(-1, H, P)
            B, C = B_SKN[piece, k, None], C_SKN[piece, k, None]
            y_SKHP[piece, k] = single_update(
                ssm_SHPN[piece], x_SKHP[piece, k], dt, A_HPN, B, C, D=zero_HP, dt_bias=zero_HP
            )
    return y_SKHP, ssm_SHPN
