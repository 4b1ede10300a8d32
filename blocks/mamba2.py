"""Mamba2 (Dao & Gu 2024, arXiv 2405.21060): a state space model with scalar decay a head, in its dual form (SSD).

    z, u, dt = projections of x                    u = (x, B, C), through a short causal depthwise convolution and SiLU
    S_l = exp(dt_l A) S_{l-1} + dt_l x_l B_l^T     one state [P, N] a head, A < 0
    y_l = S_l C_l + skip * x_l,   out = U (RMSNorm(y * SiLU(z)))

The tokens of all frames form one sequence l = 0..T*K-1; B and C are shared by the heads. The state is the last
`conv - 1` inputs of the convolution [S, conv-1, channels] and the SSM state [S, H, P, N].

`step` is the recurrence as written: the reference. `prefetch` computes it in chunks; `retrieve` lets each noisy frame
read the memory before it by the same sum: the clean tokens of its chunk, the state entering that chunk, and itself.
On CUDA devices mamba-ssm's kernels do the same where they can be had (`mamba_kernels.py`): both are one scan, and where
no gradient is asked for `step` is an update a token.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from rad_bench.blocks.fast import mamba2_kernels as mamba_kernels
from rad_bench.blocks.memory import MemoryBlock, Path, Prefetched, State, in_full_precision


@dataclass(frozen=True)
class Tokens:
    """Projected tokens of T frames, ready for the recurrence."""

    x_STKHP: Tensor
    B_STKN: Tensor
    C_STKN: Tensor
    dt_STKH: Tensor


@dataclass(frozen=True)
class Memory:
    """Clean frames as `retrieve` needs them."""

    tokens: Tokens
    entering: list[Tensor]  # the SSM state before each chunk, [S, H, P, N]; the kernels need the first alone
    conv_history: Tensor  # [S, T, conv-1, channels]: inputs of the convolution before each frame


class Mamba2(MemoryBlock):
    """The Mamba2 layer: selective state space memory, constant in size."""

    size_option = "head_dim"
    fine_option = "state"

    def __init__(
        self, dim: int, heads: int = 2, head_dim: int = 32, state: int = 32, conv: int = 4, chunk: int = 64
    ) -> None:
        super().__init__(dim)
        if min(heads, head_dim, state, chunk) < 1 or conv < 2:
            raise ValueError("mamba2 needs heads, head_dim, state, chunk >= 1 and conv >= 2")
        self.heads, self.head_dim, self.state_size, self.conv, self.chunk = (
            heads,
            head_dim,
            state,
            conv,
            chunk,
        )
        inner = heads * head_dim
        self.channels = inner + 2 * state
        self.input = nn.Linear(dim, inner + self.channels + heads, bias=False)
        self.conv_weight = nn.Parameter(torch.empty(conv, self.channels).uniform_(-1, 1) / math.sqrt(conv))
        self.conv_bias = nn.Parameter(torch.zeros(self.channels))
        # Time is counted in frames here, not in characters: decay rates are set for tens of steps.
        dt = torch.exp(torch.empty(heads).uniform_(math.log(0.1), math.log(1.0)))
        self.dt_bias = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))  # softplus of it is dt
        self.A_log = nn.Parameter(torch.empty(heads).uniform_(math.log(0.01), math.log(0.1)))
        self.skip = nn.Parameter(torch.ones(heads))
        self.norm = nn.Parameter(torch.ones(inner))
        self.output = nn.Linear(inner, dim, bias=False)

    def path(self, device: torch.device, dtype: torch.dtype) -> Path:
        why_not = mamba_kernels.unavailable(device, dtype)
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
        tokens = self._tokens(self._convolve(history)[:, None], dt)
        parts = tokens.x_STKHP[:, 0], tokens.B_STKN[:, 0], tokens.C_STKN[:, 0], tokens.dt_STKH[:, 0]
        if torch.is_grad_enabled() or mamba_kernels.unavailable(x_SKD.device, x_SKD.dtype):
            y_SKHP, ssm = self._recur(*parts, ssm)
        else:
            y_SKHP, ssm = mamba_kernels.update(*parts, -self.A_log.exp(), ssm)
        return self._finish(y_SKHP[:, None], tokens, z)[:, 0], (history[:, -(self.conv - 1) :], ssm)

    def read(self, x_SKD: Tensor, state: State) -> Tensor:
        if not mamba_kernels.unavailable(x_SKD.device, x_SKD.dtype):
            return super().read(x_SKD, state)
        history, ssm = state
        z, u, dt = self._project(x_SKD[:, None])
        tokens = self._tokens(self._convolve(torch.cat([history[:, None], u], 2)), dt)
        decay = (tokens.dt_STKH * -self.A_log.exp()).cumsum(2)
        return self._finish(self._read_entering(tokens, ssm, decay) + self._read_itself(tokens, decay), tokens, z)[:, 0]

    def _recur(
        self, x_SKHP: Tensor, B_SKN: Tensor, C_SKN: Tensor, dt_SKH: Tensor, ssm: Tensor
    ) -> tuple[Tensor, Tensor]:
        A, outputs = -self.A_log.exp(), []
        for x, B, C, dt in zip(x_SKHP.unbind(1), B_SKN.unbind(1), C_SKN.unbind(1), dt_SKH.unbind(1), strict=True):
            write = torch.einsum("sh,shp,sn->shpn", dt, x, B)
            ssm = torch.exp(dt * A)[..., None, None] * ssm + write
            outputs.append(torch.einsum("shpn,sn->shp", ssm, C))
        return torch.stack(outputs, 1), ssm

    def prefetch(self, x_STKD: Tensor, state: State) -> Prefetched:
        history, ssm = state
        T, K = x_STKD.shape[1:3]
        z, u, dt = self._project(x_STKD)
        inputs = torch.cat([history, u.flatten(1, 2)], 1)
        conv_history = inputs.unfold(1, self.conv - 1, K)[:, :T].transpose(2, 3)
        tokens = self._tokens(self._convolve(inputs).unflatten(1, (T, K)), dt)
        if mamba_kernels.unavailable(x_STKD.device, x_STKD.dtype):
            entering = []
            for first in range(0, T, self._chunk_frames(K)):
                entering.append(ssm)
                chunk = _frames(tokens, slice(first, first + self._chunk_frames(K)))
                ssm = self._advance(ssm, chunk.x_STKHP, chunk.B_STKN, chunk.dt_STKH)
            memory = Memory(tokens, entering, conv_history)
            y_STKHP = self._read(tokens, memory)
        else:
            memory = Memory(tokens, [ssm], conv_history)
            y_STKHP, ssm = self._scan(tokens, tokens.C_STKN, ssm)
        y_STKD = self._finish(y_STKHP, tokens, z)
        return Prefetched(y_STKD, memory, (inputs[:, -(self.conv - 1) :], ssm))

    def retrieve(self, x_STKD: Tensor, prefetched: Prefetched) -> Tensor:
        memory: Memory = prefetched.memory
        z, u, dt = self._project(x_STKD)
        inputs = torch.cat([memory.conv_history[:, -x_STKD.shape[1] :], u], 2)
        tokens = self._tokens(self._convolve(inputs), dt)
        plain = mamba_kernels.unavailable(x_STKD.device, x_STKD.dtype)
        y_STKHP = self._read(tokens, memory) if plain else self._read_by_scan(tokens, memory)
        return self._finish(y_STKHP, tokens, z)

    def _chunk_frames(self, tokens_per_frame: int) -> int:
        return max(1, self.chunk // tokens_per_frame)

    def _project(self, x_STKD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gate z, the convolution's input u and the raw step size dt of each token."""
        inner = self.heads * self.head_dim
        z, u, dt = self.input(x_STKD).split([inner, self.channels, self.heads], -1)
        return z, u, dt

    def _convolve(self, inputs: Tensor) -> Tensor:
        """Convolve tokens behind their `conv - 1` predecessors: [..., conv-1+K, channels] -> [..., K, channels]."""
        convolved: Tensor = _Convolution.apply(inputs.to(self.conv_weight.dtype), self.conv_weight, self.conv_bias)
        return F.silu(convolved)

    def _tokens(self, u_STKC: Tensor, dt_STKH: Tensor) -> Tokens:
        x, B, C = u_STKC.split([self.heads * self.head_dim, self.state_size, self.state_size], -1)
        x_STKHP = x.unflatten(-1, (self.heads, self.head_dim))
        return Tokens(x_STKHP, B, C, F.softplus(dt_STKH + self.dt_bias))

    @in_full_precision
    def _advance(self, ssm: Tensor, x_STKHP: Tensor, B_STKN: Tensor, dt_STKH: Tensor) -> Tensor:
        """Carry the SSM state over the given frames at once."""
        dt_SLH = dt_STKH.flatten(1, 2)
        a_SLH = (dt_SLH * -self.A_log.exp()).cumsum(1)
        weight_SLH = dt_SLH * torch.exp(a_SLH[:, -1:] - a_SLH)
        x_SLHP, B_SLN = x_STKHP.flatten(1, 2), B_STKN.flatten(1, 2)
        write = torch.einsum("slhp,sln->shpn", weight_SLH[..., None] * x_SLHP, B_SLN)
        return torch.exp(a_SLH[:, -1])[..., None, None] * ssm + write

    def _read(self, queries: Tokens, memory: Memory) -> Tensor:
        """Return y_STKHP of query frames, which stand at the last frames of the memory's, before skip and gate."""
        T, K = memory.tokens.dt_STKH.shape[1:3]
        absent = T - queries.dt_STKH.shape[1]
        size = self._chunk_frames(K)
        outputs = []
        for number, first in enumerate(range(0, T, size)):
            if min(first + size, T) <= absent:
                continue
            asked = slice(max(first - absent, 0), min(first + size, T) - absent)
            local = _frames(queries, asked)
            offset = asked.start + absent - first  # place of the first asked frame within the chunk
            clean = _frames(memory.tokens, slice(first, first + size))
            outputs.append(self._read_chunk(local, clean, offset, memory.entering[number]))
        return torch.cat(outputs, 1)

    def _read_chunk(self, queries: Tokens, clean: Tokens, offset: int, entering: Tensor) -> Tensor:
        """Read one chunk: earlier frames' clean tokens, the state that entered, and the query frame itself."""
        A = -self.A_log.exp()
        Q, K = queries.dt_STKH.shape[1:3]
        T = clean.dt_STKH.shape[1]
        own = (queries.dt_STKH * A).cumsum(2)  # log decay within the query frame, inclusive
        passed = (clean.dt_STKH * A).flatten(1, 2).cumsum(1)  # log decay from the chunk's start, inclusive
        frame_end = passed.unflatten(1, (T, K))[:, :, -1]
        before = F.pad(frame_end, (0, 0, 1, 0))[:, offset : offset + Q]  # ... up to the query frame, exclusive
        total = before[:, :, None] + own  # [S, Q, K, H]

        scores = torch.einsum("sqkn,sln->sqkl", queries.C_STKN, clean.B_STKN.flatten(1, 2))
        decay = rearrange(total, "s q k h -> s h q k 1") - rearrange(passed, "s l h -> s h 1 1 l")
        frame = torch.arange(T, device=own.device).repeat_interleave(K)
        earlier = frame[None, :] < torch.arange(offset, offset + Q, device=own.device)[:, None]
        weights = scores[:, None] * decay.masked_fill(~earlier[:, None], -torch.inf).exp()
        values = clean.dt_STKH[..., None] * clean.x_STKHP
        y = torch.einsum("shqkl,slhp->sqkhp", weights, values.flatten(1, 2))

        return y + self._read_entering(queries, entering, total) + self._read_itself(queries, own)

    def _read_entering(self, queries: Tokens, entering: Tensor, decay_SQKH: Tensor) -> Tensor:
        """Read a state after some (log) decay."""
        return decay_SQKH.exp()[..., None] * torch.einsum("sqkn,shpn->sqkhp", queries.C_STKN, entering)

    def _read_itself(self, queries: Tokens, own: Tensor) -> Tensor:
        """Read the query frame's own tokens, up to each; `own` is their log decay, inclusive."""
        K = own.shape[2]
        scores = torch.einsum("sqkn,sqjn->sqkj", queries.C_STKN, queries.B_STKN)
        decay = rearrange(own, "s q k h -> s q h k 1") - rearrange(own, "s q j h -> s q h 1 j")
        future = torch.ones(K, K, dtype=torch.bool, device=own.device).triu(1)
        weights = scores[:, :, None] * decay.masked_fill(future, -torch.inf).exp()
        return torch.einsum("sqhkj,sqjhp->sqkhp", weights, queries.dt_STKH[..., None] * queries.x_STKHP)

    def _scan(self, written: Tokens, C_STKN: Tensor, ssm: Tensor) -> tuple[Tensor, Tensor]:
        """Write tokens and read after each of them, by mamba-ssm's kernels: return y_STKHP and the last state."""
        y_SLHP, ssm = mamba_kernels.scan(
            written.x_STKHP.flatten(1, 2), written.B_STKN.flatten(1, 2), C_STKN.flatten(1, 2),
            written.dt_STKH.flatten(1, 2), -self.A_log.exp(), ssm, self.chunk,
        )  # fmt: skip
        return y_SLHP.unflatten(1, C_STKN.shape[1:3]), ssm

    def _read_by_scan(self, queries: Tokens, memory: Memory) -> Tensor:
        """Do what `_read` does by one scan, of the clean tokens a frame late, with the query frames' C.

        There query token (t, k) reads what clean frames wrote up to token (t-1, k). Another K steps bring it to its
        place: the later tokens of clean frame t-1, then those of its own frame up to itself.
        """
        T, K = memory.tokens.dt_STKH.shape[1:3]
        Q = queries.dt_STKH.shape[1]
        late = _map_tokens(lambda part: _pad_frames(part[:, :-1], 1), memory.tokens)
        y, _ = self._scan(late, _pad_frames(queries.C_STKN, T - Q), memory.entering[0])
        late = _frames(late, slice(T - Q, T))

        passed = torch.cat([late.dt_STKH, queries.dt_STKH], 2) * -self.A_log.exp()
        passed = rearrange(passed.cumsum(2), "s q l h -> s q h l")  # log decay, inclusive: frame t-1, then the query's
        here = passed[..., K:, None]
        y = rearrange((here[..., 0] - passed[..., :K]).exp(), "s q h k -> s q k h 1") * y[:, T - Q :]

        key = torch.arange(2 * K, device=y.device)
        within = (key > key[:K, None]) & (key <= key[K:, None])
        decay = (here - passed[..., None, :]).masked_fill(~within, -torch.inf).exp()
        scores = torch.einsum("sqkn,sqln->sqkl", queries.C_STKN, torch.cat([late.B_STKN, queries.B_STKN], 2))
        values = torch.cat([part.dt_STKH[..., None] * part.x_STKHP for part in (late, queries)], 2)
        return y + torch.einsum("sqhkl,sqlhp->sqkhp", scores[:, :, None] * decay, values)

    def _finish(self, y_STKHP: Tensor, tokens: Tokens, z: Tensor) -> Tensor:
        y = (y_STKHP + self.skip[:, None] * tokens.x_STKHP).flatten(-2)
        return self.output(F.rms_norm(y * F.silu(z), y.shape[-1:], self.norm))


class _Convolution(torch.autograd.Function):
    """Depthwise convolution along the last dimension but one: y_k = bias + sum_i weight_i * x_{k+i}.

    Its gradient is written out because PyTorch's own would fill a tensor with zeros for each tap's slice.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y = bias.expand_as(x[..., len(weight) - 1 :, :])
        for tap, part in zip(weight, _parts(x, len(weight)), strict=True):
            y = torch.addcmul(y, tap, part)
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        dx = torch.zeros_like(x)
        for tap, part in zip(weight, _parts(dx, len(weight)), strict=True):
            part += tap * dy
        dweight = [(dy * part).flatten(0, -2).sum(0) for part in _parts(x, len(weight))]
        return dx, torch.stack(dweight), dy.flatten(0, -2).sum(0)


def _parts(x: Tensor, taps: int) -> list[Tensor]:
    """Return what each tap sees."""
    return [x.narrow(-2, i, x.shape[-2] - taps + 1) for i in range(taps)]


def _map_tokens(function: Callable[[Tensor], Tensor], tokens: Tokens) -> Tokens:
    return Tokens(*map(function, (tokens.x_STKHP, tokens.B_STKN, tokens.C_STKN, tokens.dt_STKH)))


def _frames(tokens: Tokens, frames: slice) -> Tokens:
    return _map_tokens(lambda part: part[:, frames], tokens)


def _pad_frames(part: Tensor, frames: int) -> Tensor:
    """Put frames of zeros before those of a tensor [S, T, ...]: with dt = 0 they neither decay nor write."""
    return torch.cat([part.new_zeros(part.shape[0], frames, *part.shape[2:]), part], 1)
