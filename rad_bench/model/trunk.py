"""The recurrent diffusion transformer: one trunk, any memory block.

A layer is spatial attention over a frame's tokens, causal temporal attention over a local window (per location, or over
all tokens of its frames), the memory block, and an MLP; each is modulated by the frame's noise level and motion
(adaLN-zero, Peebles & Xie 2022, arXiv 2212.09748). There are two streams of frames. *Clean* frames have the
stabilisation noise level; they are written to the attention window and to memory. *Noisy* frames only read: the clean
frames of their window, the memory before their step, and their own step. Training (all frames of both streams at once)
and rollout (one step of one stream, with a cache) run the same code, so they agree.

Letters: B videos, T frames, N tokens a frame, D channels, H heads, P channels a head, M motion features, W window,
F frames a step. A step is F frames that are denoised together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rad_bench.blocks.memory import MemoryBlock, State
from rad_bench.blocks.none import NoMemory
from rad_bench.config import TrunkConfig
from rad_bench.model.cache import Cache, LayerCache
from rad_bench.model.motion import motion_size
from rad_bench.model.rope import rotate, rotation_1d, rotation_2d, rotation_3d
from rad_bench.model.scan import Scan
from rad_bench.model.window import SMALLEST_BAND, Bands, attend_in_bands, make_bands


@dataclass(frozen=True)
class Streams:
    """The frames of a pass, [clean..., noisy...], and the mask of temporal attention."""

    clean: int  # number of clean frames T_c
    frame_Q: Tensor  # absolute index of every frame of the pass
    visible_QK: Tensor  # temporal attention, keys = [cached..., clean..., noisy...]
    bands: Bands | None  # the same for attention over all tokens of a frame; None: per location


class Attention(nn.Module):
    """Multi-head attention over the second-to-last axis, with rotary positions."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def project(self, x: Tensor, rotation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[..., L, D] -> rotated q, rotated k and v, each [..., L, H, P]."""
        qk, v = rearrange(self.qkv(x), "... (three h p) -> three ... h p", three=3, h=self.heads).split([2, 1])
        q, k = rotate(qk, rotation)
        return q, k, v[0]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None = None) -> Tensor:
        """Attend from [..., Q, H, P] to [..., K, H, P]; `visible` is [Q, K]."""
        lead = q.shape[:-3]
        q, k, v = (tensor.flatten(0, -4).transpose(1, 2) for tensor in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
        return self.output(y.transpose(1, 2).flatten(2)).unflatten(0, lead)

    def attend_over_frames(self, q_BNTHP: Tensor, k_BNSHP: Tensor, v_BNSHP: Tensor, streams: Streams) -> Tensor:
        """Attend to the frames that a frame sees: per location, or to all of their tokens. Returns [B, N, T, D]."""
        if streams.bands is None:
            return self.attend(q_BNTHP, k_BNSHP, v_BNSHP, streams.visible_QK)
        return self.output(attend_in_bands(q_BNTHP, k_BNSHP, v_BNSHP, streams.bands).flatten(-2))


class Layer(nn.Module):
    """Spatial attention, temporal attention, memory, MLP."""

    def __init__(self, config: TrunkConfig, scan: Scan, motion: int, memory: MemoryBlock) -> None:
        super().__init__()
        D = config.width
        self.window, self.scan, self.memory_gain = config.window, scan, config.memory_gain
        self.noisy_writes = config.memory_writes == "noisy"
        self.spatial = Attention(D, config.heads)
        self.temporal = Attention(D, config.heads)
        self.motion = nn.Linear(motion, D)
        self.motion_code = nn.Linear(D, D, bias=False)
        self.memory = memory
        hidden = int(config.mlp_ratio * D)
        self.mlp = nn.Sequential(nn.Linear(D, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, D))
        self.modulation = nn.Linear(D, 12 * D)

    def forward(
        self, x: Tensor, condition_BTD: Tensor, motion_BTM: Tensor, streams: Streams, cache: LayerCache,
        rotations: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, LayerCache]:  # fmt: skip
        """Process the frames of a pass, x_BTND; return them and the cache with the clean frames written."""
        space, time = rotations
        modulation = self.modulation(condition_BTD)[:, :, None].chunk(12, -1)
        shift, scale, gate = modulation[:4], modulation[4:8], modulation[8:]

        def modulated(sublayer: int) -> Tensor:
            return torch.addcmul(shift[sublayer], F.layer_norm(x, x.shape[-1:]), 1 + scale[sublayer])

        q, k, v = self.spatial.project(modulated(0), space)
        x = x + gate[0] * self.spatial.attend(q, k, v)

        q, k, v = self.temporal.project(modulated(1).transpose(1, 2), time)
        k, v = torch.cat([cache.k_BNWHP, k], 2), torch.cat([cache.v_BNWHP, v], 2)
        x = x + gate[1] * self.temporal.attend_over_frames(q, k, v, streams).transpose(1, 2)
        written = cache.k_BNWHP.shape[2] + streams.clean
        kept = slice(max(written - self.window, 0), written)

        # The motion is also added to the memory's input, as RAD feeds actions to its RNN. Without it no block learned
        # where to write and read, not even full attention.
        code = self.motion_code(F.layer_norm(self.motion(motion_BTM), condition_BTD.shape[-1:]))
        y, state = self._remember(modulated(2) + self.memory_gain * code[:, :, None], streams.clean, cache.memory)
        x = x + gate[2] * y

        x = x + gate[3] * self.mlp(modulated(3))
        return x, LayerCache(k[:, :, kept], v[:, :, kept], state)

    def _remember(self, x_BTND: Tensor, clean: int, state: State) -> tuple[Tensor, State]:
        """Write the clean frames into memory and read it with the noisy frames."""
        x_clean, x_noisy = x_BTND[:, :clean], x_BTND[:, clean:]
        if not clean:  # one noisy step against a carried state
            y = self.memory.read(self.scan.fold(x_noisy)[:, 0], state)
            return self.scan.unfold(y[:, None]), state
        noisy_STKD = self.scan.fold(x_noisy) if x_noisy.shape[1] else None
        y_clean, y_noisy, state = remember(self.memory, self.scan.fold(x_clean), noisy_STKD, state, self.noisy_writes)
        return torch.cat([self.scan.unfold(y) for y in (y_clean, y_noisy) if y is not None], 1), state


def remember(
    memory: MemoryBlock, clean_STKD: Tensor, noisy_STKD: Tensor | None, state: State, noisy_writes: bool
) -> tuple[Tensor, Tensor | None, State]:
    """Write clean frames into a memory and let noisy ones, if any, read it. Return both outputs and the new state.

    `noisy_writes` is the earlier recipe: in training, noisy frames themselves advance the memory.
    """
    if noisy_STKD is None or not noisy_writes:
        return memory.remember(clean_STKD, noisy_STKD, state)
    y_clean, _, after = memory.remember(clean_STKD, None, state)
    context = clean_STKD.shape[1] - noisy_STKD.shape[1]
    before = memory.remember(clean_STKD[:, :context], None, state)[2] if context else state
    return y_clean, memory.remember(noisy_STKD, None, before)[0], after


class Trunk(nn.Module):
    """The network: predicts the target of noisy frames from the clean frames before them.

    Initial weights outside the memory blocks depend only on (seed, parameter name), so every block starts from the same
    trunk; `trunk_hash` proves it. Frames are [B, T, C, height, width] in [-1, 1].
    """

    def __init__(
        self, config: TrunkConfig, make_memory: Callable[[int], MemoryBlock], frame_shape: tuple[int, int, int],
        action_size: int, seed: int, stabilisation: float = 0.0, pose_size: int = 3,
    ) -> None:  # fmt: skip
        """`make_memory(D)` builds the memory block of one layer."""
        super().__init__()
        channels, height, width = frame_shape
        rows, columns, D = height // config.patch, width // config.patch, config.width
        self.config, self.frame_shape, self.stabilisation = config, frame_shape, stabilisation
        self.recompute = False  # activation checkpointing
        self.rows, self.columns = rows, columns
        self.scan = Scan(config.scan, rows, columns, config.frames_per_step, config.scan_block)
        motion = motion_size(config.motion, action_size, pose_size)
        self.embed = nn.Linear(channels * config.patch**2, D)
        self.position = nn.Parameter(torch.zeros(rows * columns, D))
        self.level = nn.Sequential(nn.Linear(D, D), nn.SiLU(), nn.Linear(D, D))
        self.motion = nn.Linear(motion, D)
        layers = []
        for number in range(config.depth):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(_seed_of(seed, f"memory.{number}"))
                memory = make_memory(D) if number in memory_layers(config) else NoMemory(D)
                layers.append(Layer(config, self.scan, motion, memory))
        self.layers = nn.ModuleList(layers)
        self.modulation = nn.Linear(D, 2 * D)
        self.head = nn.Linear(D, channels * config.patch**2)
        _initialise(dict(self.trunk_parameters()), seed)

    def trunk_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Iterate over the named parameters outside the memory blocks."""
        return ((name, p) for name, p in self.named_parameters() if ".memory." not in name)

    def memory_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Iterate over the named parameters of the memory blocks."""
        return ((name, p) for name, p in self.named_parameters() if ".memory." in name)

    def memory_block(self) -> MemoryBlock:
        """Return the block of the first layer that has one; all layers have the same kind."""
        memory = self.layers[memory_layers(self.config)[0]].memory
        assert isinstance(memory, MemoryBlock)
        return memory

    def trunk_hash(self) -> str:
        """Return a hash of all weights outside the memory blocks."""
        digest = hashlib.sha256()
        for name, parameter in sorted(self.trunk_parameters()):
            digest.update(name.encode())
            digest.update(parameter.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def start(self, videos: int) -> Cache:
        """Return the cache of `videos` videos before their first frame."""
        shape = (
            videos,
            self.rows * self.columns,
            0,
            self.config.heads,
            self.config.width // self.config.heads,
        )
        empty = self.position.new_zeros(shape)
        states = [layer.memory.initial_state(self.scan.sequences(videos)) for layer in self.layers]  # type: ignore[operator,union-attr]
        return Cache(0, tuple(LayerCache(empty, empty, state) for state in states))

    def forward(
        self, clean: Tensor, noisy: Tensor, level_BT: Tensor, motion_BTM: Tensor, streams: Streams | None = None
    ) -> Tensor:
        """Training: predict all noisy frames at once. They are noisy versions of the last frames of the clean clip.

        `level_BT` is the noise level of each noisy frame; `motion_BTM` covers the clean clip. `streams`, here and
        below, may be given by who calls again and again: they are copied from the host.
        """
        output, _ = self._run(clean, noisy, level_BT, motion_BTM, self.start(len(clean)), streams)
        return output

    def commit(self, clean: Tensor, motion_BTM: Tensor, cache: Cache, streams: Streams | None = None) -> Cache:
        """Write finished frames (a multiple of F) to the attention window and to memory."""
        noisy = clean[:, :0]
        _, cache = self._run(clean, noisy, noisy[:, :, 0, 0, 0], motion_BTM, cache, streams)
        return cache

    def denoise(
        self, noisy: Tensor, level_BT: Tensor, motion_BTM: Tensor, cache: Cache, streams: Streams | None = None
    ) -> Tensor:
        """Rollout: predict the F frames of the next step; nothing is written."""
        output, _ = self._run(noisy[:, :0], noisy, level_BT, motion_BTM, cache, streams)
        return output

    def _run(
        self, clean: Tensor, noisy: Tensor, level_BT: Tensor, motion_BTM: Tensor, cache: Cache,
        streams: Streams | None,
    ) -> tuple[Tensor, Cache]:  # fmt: skip
        T_c, T_n = clean.shape[1], noisy.shape[1]
        p = self.config.patch
        frames = torch.cat([clean, noisy], 1)
        tokens = rearrange(frames, "b t c (h p) (w q) -> b t (h w) (c p q)", p=p, q=p)
        x = self.embed(tokens) + self.position
        motion = torch.cat([motion_BTM[:, :T_c], motion_BTM[:, motion_BTM.shape[1] - T_n :]], 1)
        levels = torch.cat([level_BT.new_full((len(clean), T_c), self.stabilisation), level_BT], 1)
        condition = F.silu(self.level(_sinusoid(levels, self.config.width)) + self.motion(motion))
        streams = streams or self.streams(T_c, T_n, cache.frames, x.device)
        head_dim = self.config.width // self.config.heads
        space = rotation_2d(self.rows, self.columns, head_dim, x.device)
        if streams.bands is None:
            time = rotation_1d(streams.frame_Q, head_dim)
        else:
            time = rotation_3d(streams.frame_Q, self.rows, self.columns, head_dim)
        rotations = (space, time)
        layers = []
        for layer, layer_cache in zip(self.layers, cache.layers, strict=True):
            inputs = (x, condition, motion, streams, layer_cache, rotations)
            if self.recompute and torch.is_grad_enabled():
                x, layer_cache = checkpoint(layer, *inputs, use_reentrant=False)
            else:
                x, layer_cache = layer(*inputs)
            layers.append(layer_cache if torch.is_grad_enabled() else layer_cache.alone())
        x, condition = x[:, T_c:], condition[:, T_c:]
        shift, scale = self.modulation(condition)[:, :, None].chunk(2, -1)
        out = self.head(F.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift)
        out = rearrange(out, "b t (h w) (c p q) -> b t c (h p) (w q)", h=self.rows, p=p, q=p)
        return out, Cache(cache.frames + T_c, tuple(layers))

    def streams(self, T_c: int, T_n: int, first: int, device: torch.device) -> Streams:
        """Return the streams of a pass after `first` clean frames; none of more than the window but `frame_Q` differ.

        A frame sees earlier clean frames in the window, and its own step up to itself.
        """
        F_, W = self.config.frames_per_step, self.config.window
        if T_c % F_ or T_n % F_ or (T_n > max(T_c, F_)):
            raise ValueError(f"{T_c} clean and {T_n} noisy frames cannot be divided into steps of {F_}")
        end = first + T_c if T_c else first + T_n
        clean, noisy = np.arange(first, first + T_c), np.arange(end - T_n, end)
        cached = np.arange(max(first - W, 0), first)
        query, key = np.concatenate([clean, noisy]), np.concatenate([cached, clean, noisy])
        query_noisy = np.arange(T_c + T_n)[:, None] >= T_c
        key_noisy = np.arange(len(key))[None, :] >= len(cached) + T_c
        step_start = (query // F_ * F_)[:, None]
        in_window = (key >= step_start - W) & (key < step_start) & ~key_noisy
        own_step = (key >= step_start) & (key <= query[:, None]) & (key_noisy == query_noisy)
        visible = in_window | own_step
        full = self.config.attention == "full"
        bands = make_bands(visible, T_c, max(W, F_, SMALLEST_BAND), device) if full else None
        frame_Q, visible_QK = (torch.from_numpy(part).to(device) for part in (query, visible))
        return Streams(T_c, frame_Q, visible_QK, bands)


def memory_layers(config: TrunkConfig) -> list[int]:
    """Return the numbers of the layers that have a memory block."""
    last = config.depth - 1
    return {"all": list(range(config.depth)), "alternate": list(range(last, -1, -2))[::-1], "last": [last]}[
        config.memory_layers
    ]


def _sinusoid(level: Tensor, width: int) -> Tensor:
    """Embed noise levels in [0, 1]: [B, T] -> [B, T, width]."""
    half = width // 2
    frequency = torch.exp(torch.linspace(0, 1, half, device=level.device) * torch.log(torch.tensor(1000.0)))
    phase = level[..., None] * frequency
    return torch.cat([phase.sin(), phase.cos()], -1)


def _seed_of(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:7], "big")


def _initialise(parameters: dict[str, nn.Parameter], seed: int) -> None:
    """Set trunk weights from (seed, name). Modulations and the head start at zero, so layers start as the identity."""
    with torch.no_grad():
        for name, parameter in parameters.items():
            generator = torch.Generator().manual_seed(_seed_of(seed, name))
            if name.endswith("bias") or "modulation" in name or name.startswith("head"):
                parameter.zero_()
            elif name == "position":
                parameter.normal_(0, 0.02, generator=generator)
            elif "motion_code" in name:
                nn.init.orthogonal_(parameter, generator=generator)
            else:
                nn.init.xavier_uniform_(parameter, generator=generator)
