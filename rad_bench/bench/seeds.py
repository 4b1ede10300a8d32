"""Seeds: does it pay to train several at once? Forward and backward of a step, at the preset of memory_blocks.yaml.

Two races a block:

    packed     eight seeds, their weights stacked, in one pass by `torch.func.vmap`, against one seed after the other
    at most    eight seeds' clips through the weights of one, in one pass, against eight passes: what eight seeds at
               once could save, if their products were as large and their weights as few as one seed's

A step's other parts (clips, noise, optimiser) are about a tenth of it, and are not raced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

from rad_bench.bench.race import Race
from rad_bench.blocks.contract import perturb
from rad_bench.blocks.memory import without_kernels
from rad_bench.config import RunConfig
from rad_bench.data import open_dataset
from rad_bench.model.budget import build_trunk
from rad_bench.model.codec import open_codec
from rad_bench.model.diffusion import Diffusion
from rad_bench.model.motion import motion_features
from rad_bench.model.registry import block_names
from rad_bench.model.trunk import Trunk

SEEDS = 8
BUDGET = 70_000  # memory parameters of each model in memory_blocks.yaml
TOLERANCE = 1e-5  # fp32; losses, and gradients relative to their largest entry

Batch = tuple[Tensor, ...]  # clean frames, motion, noise levels, noise


@dataclass(frozen=True)
class Solo:
    """A seed's trunk and what it trains on in its first step."""

    trunk: Trunk
    diffusion: Diffusion
    batch: Batch


def races(device: torch.device, seeds: int = SEEDS) -> Iterator[Race]:
    """Yield both races for every built-in block."""
    for name in block_names():
        solos = [make_solo(name, seed, device) for seed in range(seeds)]
        yield Race(
            f"{name}, {seeds} seeds at once", "one after the other", packed(solos), one_by_one(solos), TOLERANCE,
            "at least 2",
        )  # fmt: skip
        yield Race(
            f"{name}, at most: clips of {seeds} seeds, one seed's weights",
            "the clips of one seed at a time",
            _with_one_seeds_weights(solos, together=True),
            _with_one_seeds_weights(solos, together=False),
            TOLERANCE,
        )


def make_solo(name: str, seed: int, device: torch.device) -> Solo:
    """Build a seed's trunk around the named block, its weights perturbed: zero-initialised ones would hide differences.

    Its batch is the run's own, clips and noise.
    """
    config = {"memory": name, "match": {"by": "parameters", "budget": BUDGET}, "seed": seed}
    run = RunConfig.model_validate(config)
    dataset = open_dataset(run.data)
    codec = open_codec(run.autoencoder, dataset.frame_shape)
    trunk, _ = build_trunk(run, codec.frame_shape, dataset.action_size)
    generator = torch.Generator().manual_seed(seed)
    perturb(trunk, 0.02, generator)
    training, diffusion = run.training, Diffusion(run.diffusion, codec.bound)
    clips = dataset.training_batch(seed, 0, training.batch, training.frames)
    motion = motion_features(run.trunk.motion, clips.actions, clips.egomotion)
    noise = diffusion.draw(trunk, training.batch, training.frames - training.loss_from, generator)
    batch = (codec.encode(clips.frames), motion, *noise)
    return Solo(trunk.to(device), diffusion, tuple(part.to(device) for part in batch))


def one_by_one(solos: Sequence[Solo]) -> Callable[[], Sequence[Tensor]]:
    """Return what gives every seed's loss and gradients, by a pass a seed."""

    def work() -> Sequence[Tensor]:
        found = []
        for solo in solos:
            solo.trunk.zero_grad(set_to_none=True)
            loss = solo.diffusion.loss(solo.trunk, *solo.batch)
            loss.backward()
            found += [loss, *_gradients(solo.trunk.named_parameters())]
        return found

    return work


def packed(solos: Sequence[Solo]) -> Callable[[], Sequence[Tensor]]:
    """Return what gives the same as `one_by_one`, by one pass over stacked weights.

    Blocks go by their PyTorch path: vmap knows nothing of kernels.
    """
    parameters, buffers = stack_module_state([_Loss(solo) for solo in solos])  # type: ignore[arg-type]
    module, batch = _Loss(solos[0]), [torch.stack(parts) for parts in zip(*(s.batch for s in solos), strict=True)]

    def loss(weights: dict[str, Tensor], constants: dict[str, Tensor], *batch: Tensor) -> Tensor:
        found: Tensor = functional_call(module, (weights, constants), batch)
        return found

    @without_kernels()
    def work() -> Sequence[Tensor]:
        for parameter in parameters.values():
            parameter.grad = None
        losses = torch.func.vmap(loss)(parameters, buffers, *batch)
        losses.sum().backward()  # no seed's loss depends on another's weights
        by_name = [gradient.unbind() for gradient in _gradients(iter(parameters.items()))]
        return [part for loss, *gradients in zip(losses, *by_name, strict=True) for part in (loss, *gradients)]

    return work


class _Loss(nn.Module):
    """A trunk's loss as a module, which `functional_call` needs."""

    def __init__(self, solo: Solo) -> None:
        super().__init__()
        self.trunk, self.diffusion = solo.trunk, solo.diffusion

    def forward(self, *batch: Tensor) -> Tensor:
        return self.diffusion.loss(self.trunk, *batch)


def _gradients(parameters: Iterator[tuple[str, Tensor]]) -> list[Tensor]:
    return [parameter.grad for _, parameter in parameters if parameter.grad is not None]


def _with_one_seeds_weights(solos: Sequence[Solo], together: bool) -> Callable[[], Sequence[Tensor]]:
    """Return what gives the mean loss over all seeds' clips and its gradients, at the first seed's weights."""
    first, batches = solos[0], [solo.batch for solo in solos]
    if together:
        batches = [tuple(torch.cat(parts) for parts in zip(*batches, strict=True))]

    def work() -> Sequence[Tensor]:
        first.trunk.zero_grad(set_to_none=True)
        losses = []
        for batch in batches:
            loss = first.diffusion.loss(first.trunk, *batch) / len(batches)
            loss.backward()
            losses.append(loss.detach())
        return [torch.stack(losses).sum(), *_gradients(first.trunk.named_parameters())]

    return work
