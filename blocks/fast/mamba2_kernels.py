"""mamba-ssm's Triton kernels for the recurrence of `mamba2.py`, where they can be had.

Of the package (Apache-2.0) two functions are needed, and they need Triton alone. `import mamba_ssm` itself also asks
for a compiled extension and for transformers, so the modules are imported behind an empty parent package.

Held to the reference in fp32 by Triton's interpreter on the CPU (`tests/blocks/test_mamba_kernels.py`). In bf16, and on
a GPU at all, they have not run yet: `rad-bench check` is what runs there first.

Letters: S sequences, L tokens, H heads, P channels a head, N state channels a channel.
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
from torch import Tensor

from rad_bench.blocks.memory import KERNELS, kernels_are_off

LARGEST_GRID = 65535  # of CUDA in the dimensions that the kernels lay sequences (times chunks) along
SMALLEST_CHUNK = 16  # tokens; the kernels' smallest tile
MODULES = ("mamba_ssm.ops.triton.ssd_combined", "mamba_ssm.ops.triton.selective_state_update")


def unavailable(device: torch.device, dtype: torch.dtype) -> str:
    """Say why the kernels cannot serve tensors of that device and type; empty if they can."""
    if device.type != "cuda":
        return "they need a CUDA device" if torch.cuda.is_available() else "no CUDA device"
    if kernels_are_off():
        return f"{KERNELS}=off in the environment"
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"they do not compute in {str(dtype).removeprefix('torch.')}"
    kernels = load()
    return kernels if isinstance(kernels, str) else ""


@functools.cache
def load() -> tuple[Callable[..., Any], Callable[..., Any]] | str:
    """Return mamba-ssm's chunked scan and single update, or why they cannot be imported."""
    # Triton rounds fp32 factors to TF32 unless told otherwise; PyTorch does not, and fp32 is to mean the same here.
    os.environ.setdefault("TRITON_F32_DEFAULT", "ieee")
    for name in ("triton", "mamba_ssm"):
        if importlib.util.find_spec(name) is None:
            return f"{name.replace('_', '-')} is not installed"
    stub = None
    if "mamba_ssm" not in sys.modules:
        spec = importlib.util.find_spec("mamba_ssm")
        assert spec is not None
        stub = types.ModuleType("mamba_ssm")
        stub.__path__ = list(spec.submodule_search_locations or [])
        sys.modules["mamba_ssm"] = stub
    try:
        combined, update = map(importlib.import_module, MODULES)
        # What torch.compile would make of them is not known: it goes around.
        scan = torch.compiler.disable(combined.mamba_chunk_scan_combined)
        return scan, torch.compiler.disable(update.selective_state_update)
    except Exception as error:  # whatever an installation may be spoilt by
        return f"mamba-ssm cannot be imported: {type(error).__name__}: {error}"
    finally:
        if stub is not None:
            sys.modules.pop("mamba_ssm", None)  # whoever imports it afterwards gets the real one


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
        x_SLHP, B_SLN, C_SLN = (part.to(torch.get_autocast_dtype(device)) for part in (x_SLHP, B_SLN, C_SLN))
    chunk = min(chunk, max(SMALLEST_CHUNK, 1 << (L - 1).bit_length()))
    outputs, finals = [], []
    for piece in _pieces(S, -(-L // chunk)):
        y, final = chunked_scan(
            x_SLHP[piece], dt_SLH[piece].float(), A_H.float(), B_SLN[piece, :, None], C_SLN[piece, :, None], chunk,
            initial_states=ssm_SHPN[piece].float(), return_final_states=True,
        )  # fmt: skip
        outputs.append(y)
        finals.append(final.to(ssm_SHPN.dtype))
    return _joined(outputs), _joined(finals)


def update(
    x_SKHP: Tensor, B_SKN: Tensor, C_SKN: Tensor, dt_SKH: Tensor, A_H: Tensor, ssm_SHPN: Tensor
) -> tuple[Tensor, Tensor]:
    """Do what `scan` does, for few tokens, one by one and without gradients."""
    single_update = load()[1]
    assert callable(single_update)
    S, K, H, P = x_SKHP.shape
    ssm_SHPN = ssm_SHPN.clone()  # the kernel writes to it
    A_HPN = A_H[:, None, None].expand(ssm_SHPN.shape[1:])
    none_HP = dt_SKH.new_zeros(H, 1).expand(H, P)  # its bias and skip: in 2.3.1, leaving either out raises
    y_SKHP = torch.empty_like(x_SKHP)
    for piece in _pieces(S, 1):
        for k in range(K):
            dt = dt_SKH[piece, k, :, None].expand(-1, H, P)
            B, C = B_SKN[piece, k, None], C_SKN[piece, k, None]
            y_SKHP[piece, k] = single_update(
                ssm_SHPN[piece], x_SKHP[piece, k], dt, A_HPN, B, C, D=none_HP, dt_bias=none_HP
            )
    return y_SKHP, ssm_SHPN


def _pieces(sequences: int, each: int) -> list[slice]:
    """Cut sequences into the fewest slices that fit a grid with `each` places a sequence."""
    size = max(LARGEST_GRID // each, 1)
    return [slice(first, min(first + size, sequences)) for first in range(0, sequences, size)]


def _joined(pieces: list[Tensor]) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)
