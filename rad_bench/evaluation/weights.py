"""Weights of learned metrics: where `rad-bench weights` keeps them, and the hash that they are verified by."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def fetched_path(name: str) -> Path:
    """Return where `rad-bench weights` keeps the weights of a network."""
    from rad_bench.data.index import cache_folder

    return cache_folder() / "weights" / f"{name}.safetensors"


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of the names and bytes of tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().numpy().tobytes())
    return digest.hexdigest()
