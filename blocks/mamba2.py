"""Mamba2 (Dao & Gu 2024, arXiv 2405.21060): a state space model with scalar decay a head, in its dual form (SSD).

    z, u, dt = projections of x                    u = (x, B, C), through a short causal depthwise convolution and SiLU
    S_l = exp(dt_l A) S_{l-1} + dt_l x_l B_l^T     one state [P, N] a head, A < 0
    y_l = S_l C_l + skip * x_l,   out = U (RMSNorm(y * SiLU(z)))

The tokens of all frames form one sequence l = 0..T*K-1. All heads share B and C. The state is the last `conv - 1`
inputs of the convolution [S, conv-1, channels] and the SSM state [S, H, P, N].

`step` is the recurrence as written. `prefetch` and `retrieve` compute it in chunks (`fast/mamba2.py`), or on CUDA
devices by mamba-ssm's kernels, if installed (`fast/mamba2_kernels.py`). There, `step` without gradients uses one too.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rad_bench.blocks.fast import mamba2 as chunked
from rad_bench.blocks.fast import mamba2_kernels as kernels
from rad_bench.blocks.fast.mamba2 import Memory, Tokens
from rad_bench.blocks.memory import MemoryBlock, Path, Prefetched, State, tie_queries


class Mamba2(MemoryBlock):
    """The Mamba2 layer: a selective state space memory of constant size."""

    size_option = "head_dim"
    fine_option = "state"

    def __init__(
        self, dim: int, heads: int = 2, head_dim: int = 32, state: int = 32, conv: int = 4, chunk: int = 64
    ) -> None:
        super().__init__(dim)
        if min(heads, head_dim, state, chunk) < 1 or conv < 2:
            raise ValueError("mamba2 needs heads, head_dim, state, chunk >= 1 and conv >= 2")
        self.heads, self.head_dim, self.state_size, self.conv, self.chunk = heads, head_dim, state, conv, chunk
        inner = heads * head_dim
        self.channels = inner + 2 * state
        self.input = nn.Linear(dim, inner + self.channels + heads, bias=False)
        tie_queries(self.input, 2 * inner + state, 2 * inner, state)  # C from B
        # Nearly the identity: on a way back the tokens before come in reverse order, so a query made of them would miss
        # its key.
        self.conv_weight = nn.Parameter(0.1 * torch.empty(conv, self.channels).uniform_(-1, 1) / math.sqrt(conv))
        with torch.no_grad():
            self.conv_weight[-1] += 1
        self.conv_bias = nn.Parameter(torch.zeros(self.channels))
        # A step of time is a frame here, not a character: decay over tens of frames.
        dt = torch.exp(torch.empty(heads).uniform_(math.log(0.1), math.log(1.0)))
        self.dt_bias = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))  # softplus of it is dt
        self.A_log = nn.Parameter(torch.empty(heads).uniform_(math.log(0.01), math.log(0.1)))
        self.skip = nn.Parameter(torch.ones(heads))
        self.norm = nn.Parameter(torch.ones(inner))
        self.output = nn.Linear(inner, dim, bias=False)

    def path(self, device: torch.device, dtype: torch.dtype) -> Path:
        why_not = kernels.unavailable(device, dtype)
        if why_not:
            return Path("PyTorch, chunked scan", f"mamba-ssm's kernels not used: {why_not}")
        return Path("mamba-ssm's Triton kernels", f"{dtype} on {device.type}, and they can be imported")

    def initial_state(self, sequences: int) -> State:
        conv = self.zeros(sequences, self.conv - 1, self.channels)
        return conv, self.zeros(sequences, self.heads, self.head_dim, self.state_size)

    def step(self, x_SKD: Tensor, state: State) -> tuple[Tensor, State]:
        history, ssm = state
        z, u, dt = self._project(x_SKD[:, None])
        history = torch.cat([history, u[:, 0]], 1)
        tokens = self._tokens(history[:, None], dt)
        frame = tokens.x_STKHP[:, 0], tokens.B_STKN[:, 0], tokens.C_STKN[:, 0], tokens.dt_STKH[:, 0]
        if torch.is_grad_enabled() or kernels.unavailable(x_SKD.device, x_SKD.dtype):
            y_SKHP, ssm = self._recur(*frame, ssm)
        else:
            y_SKHP, ssm = kernels.update(*frame, -self.A_log.exp(), ssm)
        return self._finish(y_SKHP[:, None], tokens, z)[:, 0], (history[:, -(self.conv - 1) :], ssm)

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
        if not kernels.unavailable(x_SKD.device, x_SKD.dtype):
            return super().read(x_SKD, state)
        history, ssm = state
        z, u, dt = self._project(x_SKD[:, None])
        tokens = self._tokens(torch.cat([history[:, None], u], 2), dt)
        return self._finish(chunked.read_state(tokens, ssm, self.A_log), tokens, z)[:, 0]

    def prefetch(self, x_STKD: Tensor, state: State) -> Prefetched:
        history, ssm = state
        T, K = x_STKD.shape[1:3]
        z, u, dt = self._project(x_STKD)
        inputs = torch.cat([history, u.flatten(1, 2)], 1)
        conv_history = inputs.unfold(1, self.conv - 1, K)[:, :T].transpose(2, 3)
        tokens = self._tokens(inputs, dt)
        if kernels.unavailable(x_STKD.device, x_STKD.dtype):
            entering, ssm = chunked.write(tokens, ssm, self.A_log, self.chunk)
            memory = Memory(tokens, entering, conv_history)
            y_STKHP = chunked.read(tokens, memory, self.A_log, self.chunk)
        else:
            memory = Memory(tokens, [ssm], conv_history)
            y_STKHP, ssm = kernels.scan_frames(tokens, tokens.C_STKN, self.A_log, ssm, self.chunk)
        return Prefetched(self._finish(y_STKHP, tokens, z), memory, (inputs[:, -(self.conv - 1) :], ssm))

    def retrieve(self, x_STKD: Tensor, prefetched: Prefetched) -> Tensor:
        memory: Memory = prefetched.memory
        z, u, dt = self._project(x_STKD)
        tokens = self._tokens(torch.cat([memory.conv_history[:, -x_STKD.shape[1] :], u], 2), dt)
        read = chunked.read if kernels.unavailable(x_STKD.device, x_STKD.dtype) else kernels.read
        return self._finish(read(tokens, memory, self.A_log, self.chunk), tokens, z)

    def _project(self, x_STKD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gate z, the convolution's input u and the raw step size dt of each token."""
        inner = self.heads * self.head_dim
        z, u, dt = self.input(x_STKD).split([inner, self.channels, self.heads], -1)
        return z, u, dt

    def _tokens(self, inputs: Tensor, dt_STKH: Tensor) -> Tokens:
        """Convolve tokens that follow their `conv - 1` predecessors, frame by frame or all frames in one sequence."""
        u = F.silu(chunked.convolve(inputs, self.conv_weight, self.conv_bias))
        sizes = self.heads * self.head_dim, self.state_size, self.state_size
        x, B, C = u.reshape(*dt_STKH.shape[:3], -1).split(sizes, -1)
        return Tokens(x.unflatten(-1, (self.heads, self.head_dim)), B, C, F.softplus(dt_STKH + self.dt_bias))

    def _finish(self, y_STKHP: Tensor, tokens: Tokens, z: Tensor) -> Tensor:
        y = (y_STKHP + self.skip[:, None] * tokens.x_STKHP).flatten(-2)
        return self.output(F.rms_norm(y * F.silu(z), y.shape[-1:], self.norm))
