"""What a rollout carries from frame to frame. Shape letters as in `trunk.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from rad_bench.blocks.memory import State, map_state, state_bytes


@dataclass(frozen=True)
class LayerCache:
    """What one layer keeps of the clean frames so far."""

    k_BNWHP: Tensor  # rotated keys of the last W clean frames
    v_BNWHP: Tensor
    memory: State


@dataclass(frozen=True)
class Cache:
    """What a rollout carries from frame to frame. Never changed in place."""

    frames: int  # clean frames committed so far
    layers: tuple[LayerCache, ...]

    def memory(self) -> tuple[State, ...]:
        """Return the memory states, layer by layer."""
        return tuple(layer.memory for layer in self.layers)

    def with_memory(self, states: tuple[State, ...]) -> Cache:
        """Return this cache with other memory states; the attention window stays."""
        layers = (replace(layer, memory=state) for layer, state in zip(self.layers, states, strict=True))
        return replace(self, layers=tuple(layers))

    def select(self, index: Tensor) -> Cache:
        """Return the cache of these videos, in this order, on the index's device; one may come several times."""
        videos = len(self.layers[0].k_BNWHP)

        def chosen(part: Tensor) -> Tensor:  # states lead with the sequences of all videos, video by video
            by_video = part.unflatten(0, (videos, len(part) // videos))
            return by_video[index.to(part.device)].flatten(0, 1).to(index.device)

        return self.map(chosen)

    def map(self, function: Callable[..., Tensor], *others: Cache) -> Cache:
        """Apply `function` to every tensor, and to its counterparts in other caches after as many frames."""
        layers = (
            LayerCache(
                function(*(layer.k_BNWHP for layer in same)),
                function(*(layer.v_BNWHP for layer in same)),
                map_state(function, *(layer.memory for layer in same)),
            )
            for same in zip(self.layers, *(other.layers for other in others), strict=True)
        )
        return replace(self, layers=tuple(layers))

    def memory_bytes(self) -> int:
        """Count the bytes of the memory states of all layers and videos, from the live tensors."""
        return sum(state_bytes(layer.memory) for layer in self.layers)

    def window_bytes(self) -> int:
        """Count the bytes of the keys and values that temporal attention sees, likewise."""
        parts = (part for layer in self.layers for part in (layer.k_BNWHP, layer.v_BNWHP))
        return sum(part.numel() * part.element_size() for part in parts)
