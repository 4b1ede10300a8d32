"""Mamba2 (Dao & Gu 2024, arXiv 2405.21060): a state space model with scalar decay a head, in its dual form (SSD).

    z, u, dt = projections of x                    u = (x, B, C), through a short causal depthwise convolution and SiLU
    S_l = exp(dt_l A) S_{l-1} + dt_l x_l B_l^T     one state [P, N] a head, A < 0
    y_l = S_l C_l + skip * x_l,   out = U (RMSNorm(y * SiLU(z)))

The tokens of all frames form one sequence l = 0..T*K-1. All heads share B and C. The state is the last `conv - 1`
inputs of the convolution [S, conv-1, channels] and the SSM state [S, H, P, N].

There are two forms, the same layer with other initial values:

    adapted   A step of time is a frame, not a character: rates exp(A_log) of 0.01 to 0.1 and dt of 0.1 to 1, so decay
              over tens of frames. The convolution starts as nearly the identity: on a way back the tokens before come
              in reverse order, so a query made of them would miss its key. Queries C start as copies of keys B.
    paper     As published: rates of 1 to 16 and dt of 0.001 to 0.1, the convolution as PyTorch starts it, and queries
              apart from keys, or in `paper-tied` as copies.

`step` is the recurrence as written. `prefetch` and `retrieve` compute it in chunks (`fast/mamba2.py`), or on CUDA
devices by mamba-ssm's kernels, if installed (`fast/mamba2_kernels.py`). There, `step` without gradients uses one too.
The convolution has a kernel of its own (`convolution.py`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rad_bench.blocks.convolution import convolve_apart, convolve_clip, with_convolution
from rad_bench.blocks.fast import mamba2 as chunked
from rad_bench.blocks.fast import mamba2_kernels as kernels
from rad_bench.blocks.fast.mamba2 import Memory, Tokens
from rad_bench.blocks.memory import MemoryBlock, Path, Prefetched, State
from rad_bench.blocks.start import Form, decay_start, start_as_conv1d, tie_queries


class Mamba2(MemoryBlock):
    """The Mamba2 layer: a selective state space memory of constant size."""

    size_option = "head_dim"
    fine_option = "state"
    count_option = "heads"

    def __init__(
        self, dim: int, heads: int = 2, head_dim: int = 32, state: int = 32, conv: int = 4, chunk: int = 64,
        form: Form = "adapted",
    ) -> None:  # fmt: skip
        super().__init__(dim)
        if min(heads, head_dim, state, chunk) < 1 or conv < 2:
            raise ValueError("mamba2 needs heads, head_dim, state, chunk >= 1 and conv >= 2")
        self.heads, self.head_dim, self.state_size, self.conv, self.chunk = heads, head_dim, state, conv, chunk
        inner = heads * head_dim
        self.channels = inner + 2 * state
        self.input = nn.Linear(dim, inner + self.channels + heads, bias=False)
        tie = form != "paper"
        if tie:
            tie_queries(self.input.weight, 2 * inner + state, 2 * inner, state)  # C from B
        if form == "adapted":
            weight, bias = start_as_conv1d(conv, conv, self.channels, scale=0.1), torch.zeros(self.channels)
            weight[-1] += 1
        else:
            weight, bias = start_as_conv1d(conv, conv, self.channels), start_as_conv1d(conv, self.channels)
            if tie:
                tie_queries(weight.T, inner + state, inner, state)
                tie_queries(bias, inner + state, inner, state)
        self.conv_weight, self.conv_bias = nn.Parameter(weight), nn.Parameter(bias)
        dt_bias, A_log = decay_start(heads, form, lowest=1.0)
        self.dt_bias, self.A_log = nn.Parameter(dt_bias), nn.Parameter(A_log)
        self.skip = nn.Parameter(torch.ones(heads))
        self.norm = nn.Parameter(torch.ones(inner))
        self.output = nn.Linear(inner, dim, bias=False)

    def path(self, device: torch.device, dtype: torch.dtype) -> Path:
        why_not = kernels.unavailable(device, dtype)
        if why_not:
            path = Path("PyTorch, chunked scan", f"mamba-ssm's kernels not used: {why_not}")
        else:
            path = Path("mamba-ssm's Triton kernels", f"{dtype} on {device.type}, and they can be imported")
        return with_convolution(path, device, dtype, self.conv)

    def initial_state(self, sequences: int) -> State:
        tail = self.zeros(sequences, self.conv - 1, self.channels)
        return tail, self.zeros(sequences, self.heads, self.head_dim, self.state_size)

    def step(self, x_SKD: Tensor, state: State) -> tuple[Tensor, State]:
        tail, ssm = state
        z, u, dt = self._project(x_SKD[:, None])
        u, _, tail = convolve_clip(u, tail, self.conv_weight, self.conv_bias, silu=True)
        tokens = self._tokens(u, dt)
        frame = tokens.x_STKHP[:, 0], tokens.B_STKN[:, 0], tokens.C_STKN[:, 0], tokens.dt_STKH[:, 0]
        if torch.is_grad_enabled() or kernels.unavailable(x_SKD.device, x_SKD.dtype):
            y_SKHP, ssm = self._recur(*frame, ssm)
        else:
            y_SKHP, ssm = kernels.update(*frame, -self.A_log.exp(), ssm)
        return self._finish(y_SKHP[:, None], tokens, z)[:, 0], (tail, ssm)

    def _recur(
        self, x_SKHP: Tensor, B_SKN: Tensor, C_SKN: Tensor, dt_SKH: Tensor, ssm: Tensor
    ) -> tuple[Tensor, Tensor]:
        A, outputs = -self.A_log.exp(), []
        for x, B, C, dt in zip(x_SKHP.unbind(1), B_SKN.unbind(1), C_SKN.unbind(1), dt_SKH.unbind(1), strict=True):
            write = torch.einsum("sh,shp,sn->shpn", dt, x, B)
            ssm = torch.exp(dt * A)[..., None, None] * ssm + write
            outputs.append(torch.einsum("shpn,sn->shp", ssm, C))
        return torch.stack(outputs, 1), ssm

    def read(self, x_SKD: Tensor, state: State) -> Tensor:
        # Without kernels on all devices: mamba-ssm's update would write a new state, which nobody needs.
        tail, ssm = state
        z, u, dt = self._project(x_SKD[:, None])
        u = convolve_apart(u, tail[:, None], self.conv_weight, self.conv_bias, silu=True)
        tokens = self._tokens(u, dt)
        return self._finish(chunked.read_state(tokens, ssm, self.A_log), tokens, z)[:, 0]

    def prefetch(self, x_STKD: Tensor, state: State) -> Prefetched:
        tail, ssm = state
        z, u, dt = self._project(x_STKD)
        u, tails, tail = convolve_clip(u, tail, self.conv_weight, self.conv_bias, silu=True)
        tokens = self._tokens(u, dt)
        if kernels.unavailable(x_STKD.device, x_STKD.dtype):
            entering, ssm = chunked.write(tokens, ssm, self.A_log, self.chunk)
            memory = Memory(tokens, entering, tails)
            y_STKHP = chunked.read(tokens, memory, self.A_log, self.chunk)
        else:
            memory = Memory(tokens, [ssm], tails)
            y_STKHP, ssm = kernels.scan_frames(tokens, tokens.C_STKN, self.A_log, ssm, self.chunk)
        return Prefetched(self._finish(y_STKHP, tokens, z), memory, (tail, ssm))

    def retrieve(self, x_STKD: Tensor, prefetched: Prefetched) -> Tensor:
        memory: Memory = prefetched.memory
        z, u, dt = self._project(x_STKD)
        u = convolve_apart(u, memory.tails, self.conv_weight, self.conv_bias, silu=True)
        tokens = self._tokens(u, dt)
        read = chunked.read if kernels.unavailable(x_STKD.device, x_STKD.dtype) else kernels.read
        return self._finish(read(tokens, memory, self.A_log, self.chunk), tokens, z)

    def _project(self, x_STKD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gate z, the convolution's input u and the raw step size dt of each token."""
        inner = self.heads * self.head_dim
        z, u, dt = self.input(x_STKD).split([inner, self.channels, self.heads], -1)
        return z, u, dt

    def _tokens(self, u_STKC: Tensor, dt_STKH: Tensor) -> Tokens:
        """Return the tokens of convolved frames."""
        sizes = self.heads * self.head_dim, self.state_size, self.state_size
        x, B, C = u_STKC.split(sizes, -1)
        return Tokens(x.unflatten(-1, (self.heads, self.head_dim)), B, C, F.softplus(dt_STKH + self.dt_bias))

    def _finish(self, y_STKHP: Tensor, tokens: Tokens, z: Tensor) -> Tensor:
        y = (y_STKHP + self.skip[:, None] * tokens.x_STKHP).flatten(-2)
        return self.output(F.rms_norm(y * F.silu(z), y.shape[-1:], self.norm))
