"""TTT (Sun et al. 2024, arXiv 2407.04620): the memory is a small model, trained while it is used.

Each head carries an inner model f(.; W) and takes one gradient step a frame on how well it maps keys to values:

    f(k; W) = k + LN(inner(k; W))                   inner: W k + b, or W2 gelu(W1 k + b1) + b2
    loss_t(W) = mean over the K tokens of eta_k |f(k; W) - v|^2 / 2
    y_t = f(q_t; W_{t-1}),   W_t = W_{t-1} - grad loss_t(W_{t-1})

W_0, LN's scale and the rate eta_k = `rate` * sigmoid(linear(x_k)) are learned. With `inner_norm: false` there is no LN,
and the linear inner model becomes the delta rule. The state is the inner model's parameters, each [S, H, ...]. There
are two forms:

    adapted   As above. A frame reads before it writes, so it sees only earlier frames. q, k and v are linear in x, and
              keys and queries are L2-normalised; the outputs pass through an RMS norm. Queries start as copies of keys.
    paper     As published, in the Mamba backbone, with a frame as the mini-batch: token k of a frame reads after the
              step on tokens 1..k. Queries and keys are one projection of x, each convolved over 4 tokens by itself
              (in `paper-tied`, the default, they start equal), and not normalised; eta_k is divided by P. The outputs
              pass through a layer norm and the gate gelu(W_g x). W_0 starts small. The state begins with the
              convolutions' tail, [S, 3, H * P]. Left out: positions within the mini-batch, and learned shares of
              its tokens in the step, as their number is the trunk's.

The gradient of the inner loss is written by hand (`fast/ttt.py`). Training keeps the weights before every frame where
they are few, and otherwise goes back through them (`fast/replay.py`): the same, but for rounding of the gradient.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rad_bench.blocks.convolution import PUBLISHED_TAPS, convolve_apart, convolve_clip, with_convolution
from rad_bench.blocks.fast.replay import Tensors, replay
from rad_bench.blocks.fast.ttt import Gradient, descend, inner_model, loss_gradient, model_after_each_token
from rad_bench.blocks.memory import MemoryBlock, Path, Prefetched, State, in_full_precision, state_bytes
from rad_bench.blocks.start import Form, start_as_conv1d, tie_queries

KEPT = 1 << 28  # bytes of weights, of all frames and sequences, that a backward pass may keep


class TTT(MemoryBlock):
    """Test-time training: each head trains an inner model (linear or MLP) on the frames as they arrive."""

    size_option = "head_dim"
    fine_option = count_option = "heads"
    chunk = 1  # frames that share a step

    def __init__(
        self,
        dim: int,
        inner: Literal["linear", "mlp"] = "linear",
        heads: int = 4,
        head_dim: int = 16,
        rate: float = 1.0,
        inner_norm: bool = True,
        form: Form = "paper-tied",
    ) -> None:
        super().__init__(dim)
        if heads < 1 or head_dim < 2 or rate <= 0:
            raise ValueError("ttt needs heads >= 1, head_dim >= 2 and rate > 0")
        self.heads, self.head_dim, self.rate, self.inner_norm, self.form = heads, head_dim, rate, inner_norm, form
        width = heads * head_dim
        self.qkv = nn.Linear(dim, (3 if form == "adapted" else 2) * width, bias=False)
        if form == "adapted":
            tie_queries(self.qkv.weight, 0, width, width)
        self.rate_logit = nn.Linear(dim, heads)
        self.norm_scale = nn.Parameter(torch.ones(heads, 1, head_dim))
        self.norm_shift = nn.Parameter(torch.zeros(heads, 1, head_dim))
        widths = [head_dim, head_dim] if inner == "linear" else [head_dim, 4 * head_dim, head_dim]
        self.initial = nn.ParameterList()
        for fan_in, fan_out in zip(widths[:-1], widths[1:], strict=True):
            scale = math.sqrt(fan_in) if form == "adapted" else 50.0
            self.initial.append(nn.Parameter(torch.randn(heads, fan_in, fan_out) / scale))
            self.initial.append(nn.Parameter(torch.zeros(heads, 1, fan_out)))
        self.output_norm = nn.Parameter(torch.ones(width))
        self.output = nn.Linear(width, dim, bias=False)
        if form != "adapted":
            self.output_shift = nn.Parameter(torch.zeros(width))
            self.open = nn.Linear(dim, width, bias=False)
            self.conv_weight = nn.Parameter(
                start_as_conv1d(PUBLISHED_TAPS, PUBLISHED_TAPS, 2 * width)
            )  # of queries, then of keys
            self.conv_bias = nn.Parameter(start_as_conv1d(PUBLISHED_TAPS, 2 * width))
            if form == "paper-tied":
                tie_queries(self.conv_weight.T, 0, width, width)
                tie_queries(self.conv_bias, 0, width, width)
            with torch.no_grad():
                self.rate_logit.weight.normal_(0, 0.02)
                self.rate_logit.bias.zero_()

    def path(self, device: torch.device, dtype: torch.dtype) -> Path:
        path = super().path(device, dtype)
        return path if self.form == "adapted" else with_convolution(path, device, dtype, PUBLISHED_TAPS)

    def initial_state(self, sequences: int) -> State:
        weights = tuple(weight.expand(sequences, *weight.shape) for weight in self.initial)
        if self.form == "adapted":
            return weights
        return self.zeros(sequences, PUBLISHED_TAPS - 1, self.heads * self.head_dim), *weights

    def step(self, x_SKD: Tensor, state: State) -> tuple[Tensor, State]:
        x_STKD, (tail, weights) = x_SKD[:, None], self._parts(state)
        (q, k, v, eta), _, tail = self._clean(x_STKD, tail)
        recalled, weights, _ = self._write((q[:, 0], k[:, 0], v[:, 0], eta[:, 0]), weights, self._norm())
        return self._finish(self._normed(q, recalled[:, None]), x_STKD)[:, 0], (*tail, *weights)

    def read(self, x_SKD: Tensor, state: State) -> Tensor:
        if self.form != "adapted":
            return super().read(x_SKD, state)
        x_STKD = x_SKD[:, None]
        q = self._queries(x_STKD)
        return self._finish(self._normed(q, inner_model(q[:, 0], state)[0][:, None]), x_STKD)[:, 0]

    def prefetch(self, x_STKD: Tensor, state: State) -> Prefetched:
        # Projections and norms are one call each for all frames; only the inner model runs frame by frame. Each frame
        # reads right away: reading all frames later, from stacked weights, is limited by memory bandwidth.
        tail, weights = self._parts(state)
        (q, k, v, eta), tails, tail = self._clean(x_STKD, tail)
        recalled, memory, weights = self._write_each((q, k, v, eta), weights)
        y_STKD = self._finish(self._normed(q, recalled), x_STKD)
        return Prefetched(y_STKD, (memory, tails), (*tail, *weights))

    @torch.compiler.disable  # it would unroll the loop, which takes minutes
    def _write_each(self, clean: Tensors, weights: State) -> tuple[Tensor, list[State], State]:
        """Write T frames. Return what they read [S, T, H, K, P], the weights before each, and the last weights."""
        memory, recalled = [], []
        for frame in zip(*(tensor.unbind(1) for tensor in clean), strict=True):
            memory.append(weights)
            read, weights, _ = self._write(frame, weights, self._norm())
            recalled.append(read)
        return torch.stack(recalled, 1), memory, weights

    def retrieve(self, x_STKD: Tensor, prefetched: Prefetched) -> Tensor:
        memory, tails = prefetched.memory
        reading = self._reading(x_STKD, tails)
        memory = memory[-x_STKD.shape[1] :]
        if self.form == "adapted":  # one product a frame: to stack the weights would take longer
            pairs = zip(zip(*(tensor.unbind(1) for tensor in reading), strict=True), memory, strict=True)
            recalled = torch.stack([self._read(frame, weights, ()) for frame, weights in pairs], 1)
        else:  # some thirty operations, for all frames at once
            weights = tuple(torch.stack(parts, 1).flatten(0, 1) for parts in zip(*memory, strict=True))
            frames = tuple(tensor.flatten(0, 1) for tensor in reading)
            recalled = self._read(frames, weights, self._norm()).unflatten(0, x_STKD.shape[:2])
        return self._finish(self._normed(reading[0], recalled), x_STKD)

    def remember(
        self, clean_STKD: Tensor, noisy_SQKD: Tensor | None, state: State
    ) -> tuple[Tensor, Tensor | None, State]:
        if not too_large(self._parts(state)[1], clean_STKD.shape[1]):
            return super().remember(clean_STKD, noisy_SQKD, state)
        return self._replay(clean_STKD, noisy_SQKD, state)

    def _replay(
        self, clean_STKD: Tensor, noisy_SQKD: Tensor | None, state: State
    ) -> tuple[Tensor, Tensor | None, State]:
        """Do as `remember` with whole chunks of frames, which have one step each."""
        tail, weights = self._parts(state)
        T, K, chunk = *clean_STKD.shape[1:3], self.chunk
        written, tails, tail = self._clean(clean_STKD, tail)
        clean = _in_chunks(written, [chunk] * (T // chunk))
        reading: Tensors = ()
        noisy: list[Tensors] = [()] * len(clean)
        if noisy_SQKD is not None:
            reading = self._reading(noisy_SQKD, tails)
            first = T - noisy_SQKD.shape[1]
            sizes = [min(max(end - first, 0), chunk) for end in range(chunk, T + 1, chunk)]
            noisy[sizes.count(0) :] = _in_chunks(reading, [size for size in sizes if size])
        together = max(KEPT // state_bytes(weights), 1)
        recalled, reread, weights = replay(self._write, self._read, clean, noisy, weights, self._norm(), together)

        def finished(q: Tensor, reads: list[Tensor], x_STKD: Tensor) -> Tensor:
            return self._finish(self._normed(q, torch.cat([as_frames(part, K) for part in reads], 1)), x_STKD)

        y_SQKD = None if noisy_SQKD is None else finished(reading[0], reread, noisy_SQKD)
        return finished(written[0], recalled, clean_STKD), y_SQKD, (*tail, *weights)

    def _parts(self, state: State) -> tuple[State, State]:
        """Return the tail, if there is one, and the inner model's parameters."""
        return state[: -len(self.initial)], state[-len(self.initial) :]

    def _clean(self, x_STKD: Tensor, tail: State) -> tuple[tuple[Tensor, ...], Tensor | None, State]:
        """Return what `_project` does for consecutive frames, the tails before them, and the last tail."""
        qkv = self.qkv(x_STKD)
        if self.form == "adapted":
            return self._project(qkv, x_STKD), None, ()
        u, v = qkv.chunk(2, -1)
        twice = torch.cat([u, u], -1), torch.cat([*tail, *tail], -1)
        qk, tails, last = convolve_clip(*twice, self.conv_weight, self.conv_bias)
        return self._project(torch.cat([qk, v], -1), x_STKD), tails, (last[..., : u.shape[-1]],)

    def _reading(self, x_SQKD: Tensor, tails_STJC: Tensor | None) -> Tensors:
        """Return what frames that do not write need for `_read`: q, and in the paper's form also k, v and eta."""
        if self.form == "adapted":
            return (self._queries(x_SQKD),)
        assert tails_STJC is not None  # the paper's form has a convolution
        u, v = self.qkv(x_SQKD).chunk(2, -1)
        qk = convolve_apart(torch.cat([u, u], -1), tails_STJC, self.conv_weight, self.conv_bias)
        return self._project(torch.cat([qk, v], -1), x_SQKD)

    def _project(self, qkv: Tensor, x_STKD: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return q, k, v as [S, T, H, K, P] and the rates eta / K as [S, T, H, K, 1]."""
        q, k, v = qkv.unflatten(-1, (3, self.heads, self.head_dim)).permute(3, 0, 1, 4, 2, 5).unbind(0)
        eta = self.rate / x_STKD.shape[2] * self.rate_logit(x_STKD).sigmoid().transpose(2, 3)[..., None]
        if self.form != "adapted":
            return q, k, v, eta / self.head_dim
        return F.normalize(q, dim=-1), F.normalize(k, dim=-1), v, eta

    def _queries(self, x_STKD: Tensor) -> Tensor:
        """Return q only, for frames that do not write."""
        q = F.linear(x_STKD, self.qkv.weight[: self.heads * self.head_dim])
        return F.normalize(q.unflatten(-1, (self.heads, self.head_dim)).transpose(2, 3), dim=-1)

    def _normed(self, q: Tensor, out: Tensor) -> Tensor:
        """Return f(q; W) = q + LN(out), both [..., H, K, P]."""
        if self.inner_norm:
            out = F.layer_norm(out, out.shape[-1:]) * self.norm_scale + self.norm_shift
        return q + out

    def _norm(self) -> Tensors:
        return (self.norm_scale, self.norm_shift) if self.inner_norm else ()

    def _write(self, frame: Tensors, weights: State, norm: Tensors) -> tuple[Tensor, State, Gradient]:
        """Take one step on a frame's q, k, v [S, H, K, P] and eta [S, H, K, 1].

        Return what it reads, before the norm, the weights after it, and the gradient's factors.
        """
        q, k, v, eta = frame
        if self.form == "adapted":
            return inner_model(q, weights)[0], *_step(k, v, eta, weights, norm)
        return _step_and_read(q, k, v, eta, weights, norm)

    def _read(self, frame: Tensors, weights: State, norm: Tensors) -> Tensor:
        """Return what a frame reads that does not write, before the norm."""
        if self.form == "adapted":
            return inner_model(frame[0], weights)[0]
        return _read_after_each_token(*frame, weights, norm)[0]

    def _finish(self, y_STHKP: Tensor, x_STKD: Tensor) -> Tensor:
        y = y_STHKP.transpose(2, 3).flatten(3)
        if self.form == "adapted":
            return self.output(F.rms_norm(y, y.shape[-1:], self.output_norm))
        y = F.layer_norm(y, y.shape[-1:], self.output_norm, self.output_shift)
        return self.output(y * F.gelu(self.open(x_STKD), approximate="tanh"))


def as_one_frame(x_STHKP: Tensor) -> Tensor:
    """Join the tokens of all T frames: [S, H, T * K, P]."""
    return x_STHKP.transpose(1, 2).flatten(2, 3)


def as_frames(x_SHLP: Tensor, K: int) -> Tensor:
    """Divide tokens into frames of K again: [S, T, H, K, P]."""
    return x_SHLP.unflatten(2, (-1, K)).transpose(1, 2)


def _in_chunks(tensors: Tensors, frames: list[int]) -> list[Tensors]:
    """Divide tensors [S, T, ...] into chunks of so many frames, each as one frame."""
    return list(zip(*([as_one_frame(part) for part in x.split(frames, 1)] for x in tensors), strict=True))


def too_large(weights: State, count: int) -> bool:
    """Return whether so many times the weights are too much to be kept for the backward pass."""
    return count * state_bytes(weights) > KEPT


@in_full_precision
def _step(k: Tensor, v: Tensor, eta: Tensor, weights: State, norm: Tensors) -> tuple[State, Gradient]:
    gradient = loss_gradient(k, v, eta, weights, norm)
    return descend(weights, gradient), gradient


@in_full_precision
def _read_after_each_token(
    q: Tensor, k: Tensor, v: Tensor, eta: Tensor, weights: State, norm: Tensors
) -> tuple[Tensor, Gradient]:
    gradient = loss_gradient(k, v, eta, weights, norm)
    return model_after_each_token(q, weights, gradient), gradient


@in_full_precision
def _step_and_read(
    q: Tensor, k: Tensor, v: Tensor, eta: Tensor, weights: State, norm: Tensors
) -> tuple[Tensor, State, Gradient]:
    recalled, gradient = _read_after_each_token(q, k, v, eta, weights, norm)
    return recalled, descend(weights, gradient), gradient
