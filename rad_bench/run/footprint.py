"""The memory that a run needs on its device, predicted before it starts.

The run's own code is carried out at the true shapes on fake tensors, which have sizes and no values, while a mode adds
up the bytes of all tensors that are alive. So the prediction has what autograd keeps, gradients, and what is needed for
a moment only. One and two layers are carried out: each further layer adds what the second adds. It has the peaks of

    training    forward and backward of a micro-batch; weights, averaged weights, gradients and Adam's moments
    rollout     reading the context, and a frame at the end of the longest rollout, of a batch of videos
    probe       reading the context of a batch of clips

It does not have the autoencoder, what an operation needs inside, such as the workspace of a matrix product, and what
PyTorch's allocator loses to fragments.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from rad_bench.config import RunConfig
from rad_bench.evaluation.interventions import CONTEXT_FRAMES
from rad_bench.evaluation.probe import BATCH, PIECE, has_constant_state
from rad_bench.evaluation.tasks import generated_frames
from rad_bench.model.budget import make_trunk
from rad_bench.model.cache import Cache
from rad_bench.model.diffusion import Diffusion
from rad_bench.model.trunk import Trunk


@dataclass(frozen=True)
class Model:
    """What decides the shapes of a run's tensors."""

    run: RunConfig
    options: dict[str, Any]  # of the memory block, solved
    frame_shape: tuple[int, int, int]  # of what the trunk models
    action_size: int
    pose_size: int


@dataclass(frozen=True)
class Footprint:
    """Peak bytes of a run on its device, beside its weights."""

    weights: int  # bytes of the weights
    gradient: int  # computing the gradient of a micro-batch, with the gradient itself
    rollout: int
    probe: int

    def training(self, pieces: int, accumulates: bool, processes: int) -> int:
        """Return the peak of training, if its micro-batches are divided into so many pieces more.

        `accumulates`: gradients of earlier micro-batches are there too; `processes` exchange them.
        """
        copies = 4 + accumulates + (processes > 1)  # weights, their average, two moments
        return copies * self.weights + self.weights + (self.gradient - self.weights) // pieces

    def evaluation(self) -> int:
        """Return the peak of rollouts and the probe, beside trained and averaged weights."""
        return 2 * self.weights + max(self.rollout, self.probe)


class LiveBytes(TorchDispatchMode):
    """Adds up the bytes of the tensors that operations within it have made and that are still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._storages: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage in self._storages:
            return
        size = storage.nbytes()
        self._storages.add(storage)
        weakref.finalize(storage, self._free, size)
        self.live += size
        self.peak = max(self.peak, self.live)

    def _free(self, size: int) -> None:
        self.live -= size

    def ignore(self, trunk: Trunk) -> None:
        """Do not count the trunk's weights, which are there already."""
        self._storages.update(tensor.untyped_storage() for tensor in (*trunk.parameters(), *trunk.buffers()))

    def measure(self, work: Callable[[], object]) -> int:
        """Do the work, and return the peak while it was done."""
        self.peak = self.live
        with self:
            work()
        return self.peak


def footprint(model: Model, micro_batch: int, checkpointing: bool = False) -> Footprint:
    """Predict what a run needs with micro-batches of so many clips."""
    depth = model.run.trunk.depth
    uniform = model.run.trunk.memory_layers == "all" and depth > 2
    peaks = [_peaks(model, layers, micro_batch, checkpointing) for layers in ((1, 2) if uniform else (depth,))]
    further = depth - 2 if uniform else 0
    return Footprint(*(two + further * (two - one) for one, two in zip(peaks[0], peaks[-1], strict=True)))


def _peaks(model: Model, layers: int, micro_batch: int, checkpointing: bool) -> tuple[int, int, int, int]:
    run = model.run.model_copy(update={"trunk": model.run.trunk.model_copy(update={"depth": layers})})
    with FakeTensorMode(allow_non_fake_inputs=True), sdpa_kernel(SDPBackend.MATH):  # as on a GPU
        trunk = make_trunk(run, model.options, model.frame_shape, model.action_size, model.pose_size)
        trunk.recompute = checkpointing
        weights = sum(p.nbytes for p in trunk.parameters())
        gradient = _live(trunk).measure(lambda: _train(trunk, run, micro_batch))
        return weights, gradient, _rollout_peak(trunk, run), _live(trunk).measure(lambda: _probe(trunk, run))


def _live(trunk: Trunk) -> LiveBytes:
    live = LiveBytes()
    live.ignore(trunk)
    return live


def _train(trunk: Trunk, run: RunConfig, videos: int) -> None:
    """Compute the gradient of a micro-batch, as `Trainer` does."""
    frames, noisy = run.training.frames, run.training.frames - run.training.loss_from
    clean, motion = _clip(trunk, videos, frames)
    noise, level = torch.zeros_like(clean[:, :noisy]), torch.zeros(videos, noisy)
    with torch.autocast("cpu", torch.bfloat16, enabled=run.training.precision == "bf16"):
        loss = Diffusion(run.diffusion).loss(trunk, clean, motion, level, noise)
    loss.backward()
    trunk.zero_grad()


@torch.no_grad()
def _read(trunk: Trunk, videos: int, frames: int, piece: int) -> Cache:
    """Commit so many frames in pieces. A state that no longer grows is that of all further frames."""
    cache, F = trunk.start(videos), trunk.config.frames_per_step
    piece = max(piece // F, 1) * F
    for first in range(0, frames, piece):
        before = cache.memory_bytes()
        cache = trunk.commit(*_clip(trunk, videos, min(piece, frames - first)), cache)
        if first >= trunk.config.window and cache.memory_bytes() == before:
            break
    return cache


@torch.no_grad()
def _rollout_peak(trunk: Trunk, run: RunConfig) -> int:
    """Return the peak of reading contexts, or of the last generated frame with all frames before it."""
    config, F, live = run.evaluation, trunk.config.frames_per_step, _live(trunk)
    episodes = min(config.batch, config.episodes)
    context = live.measure(lambda: _read(trunk, episodes, config.context, CONTEXT_FRAMES))
    videos = min(config.batch, config.episodes * max(len(config.interventions) - 1, 1))
    horizon = max(generated_frames(task, config, F) for task in config.tasks)
    with live:
        cache = _read(trunk, videos, config.context + horizon - F, CONTEXT_FRAMES)

    def step() -> None:
        frames, motion = _clip(trunk, videos, F)
        trunk.denoise(frames, torch.zeros(videos, F), motion, cache)
        trunk.commit(frames, motion, cache)

    generated = 2 * videos * horizon * math.prod(trunk.frame_shape) * 4  # one after the other, then joined
    return max(context, live.measure(step) + generated)


def _probe(trunk: Trunk, run: RunConfig) -> None:
    videos = min(run.evaluation.probe, run.evaluation.batch, BATCH)
    if videos and has_constant_state(trunk):
        cache = _read(trunk, videos, run.evaluation.context, CONTEXT_FRAMES)
        torch.zeros(videos, min(PIECE, cache.memory_bytes() // 4 // videos))


def _clip(trunk: Trunk, videos: int, frames: int) -> tuple[Tensor, Tensor]:
    """Return frames and motion of clips."""
    return torch.zeros(videos, frames, *trunk.frame_shape), torch.zeros(videos, frames, trunk.motion.in_features)
