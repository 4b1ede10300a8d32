"""The state of a rollout between frames: attention window and memory. Shape letters as in `trunk.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from torch import Tensor

from rad_bench.blocks.memory import State, leaves, map_state, state_bytes


@dataclass(frozen=True)
class LayerCache:
    """The state of one layer after the clean frames so far."""

    k_BNWHP: Tensor  # rotated keys of the last W clean frames
    v_BNWHP: Tensor
    memory: State

    def alone(self) -> LayerCache:
        """Return this cache without what its tensors were cut from: a slice keeps the whole tensor in memory."""
        return LayerCache(_alone(self.k_BNWHP), _alone(self.v_BNWHP), map_state(_alone, self.memory))


def _alone(tensor: Tensor) -> Tensor:
    own = tensor.numel() * tensor.element_size()
    return tensor.clone() if tensor.untyped_storage().nbytes() > 2 * own else tensor


@dataclass(frozen=True)
class Cache:
    """The state of a rollout between frames. It is never changed in place."""

    frames: int  # clean frames committed so far
    layers: tuple[LayerCache, ...]

    def memory(self) -> tuple[State, ...]:
        """Return the memory states, layer by layer."""
        return tuple(layer.memory for layer in self.layers)

    def with_memory(self, states: tuple[State, ...]) -> Cache:
        """Return this cache with other memory states and the same attention window."""
        layers = (replace(layer, memory=state) for layer, state in zip(self.layers, states, strict=True))
        return replace(self, layers=tuple(layers))

    def select(self, index: Tensor) -> Cache:
        """Return the cache of the indexed videos, in that order, on the index's device. Indices may repeat."""
        videos = len(self.layers[0].k_BNWHP)

        def select(tensor: Tensor) -> Tensor:  # the first dimension holds the sequences of all videos, video by video
            by_video = tensor.unflatten(0, (videos, len(tensor) // videos))
            return by_video[index.to(tensor.device)].flatten(0, 1).to(index.device)

        return self.map(select)

    def map(self, function: Callable[..., Tensor], *others: Cache) -> Cache:
        """Apply `function` to every tensor and its counterparts in other caches of as many frames."""
        layers = (
            LayerCache(
                function(*(cache.k_BNWHP for cache in caches)),
                function(*(cache.v_BNWHP for cache in caches)),
                map_state(function, *(cache.memory for cache in caches)),
            )
            for caches in zip(self.layers, *(other.layers for other in others), strict=True)
        )
        return replace(self, layers=tuple(layers))

    def tensors(self) -> list[Tensor]:
        """Return all tensors, in the order of `map`."""
        return [tensor for layer in self.layers for tensor in (layer.k_BNWHP, layer.v_BNWHP, *leaves(layer.memory))]

    def with_tensors(self, tensors: Iterable[Tensor]) -> Cache:
        """Return this cache with other tensors, in the order of `tensors`."""
        remaining = iter(tensors)
        return self.map(lambda _: next(remaining))

    def memory_bytes(self) -> int:
        """Return the bytes of the memory states of all layers and videos, counted from the live tensors."""
        return sum(state_bytes(layer.memory) for layer in self.layers)

    def window_bytes(self) -> int:
        """Return the bytes of the keys and values that temporal attention sees, likewise."""
        tensors = (tensor for layer in self.layers for tensor in (layer.k_BNWHP, layer.v_BNWHP))
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
