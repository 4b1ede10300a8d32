"""LPIPS (Zhang et al. 2018, arXiv 1801.03924): the `lpips` package, AlexNet, v0.1, if its verified weights are there.

The backbone's weights are torchvision's file, in torch's hub folder. Nothing is ever downloaded from here, and a file
whose SHA-256 is not the published one is not used: the column is then absent, and the report says why.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn

from rad_bench.torchvision import import_torchvision

WEIGHTS = "alexnet-owt-7be5be79.pth"
SHA256_PREFIX = "7be5be79"
LPIPS_SMALLEST = 31  # pixels; AlexNet's pooling leaves nothing of smaller frames


@functools.cache
def lpips_unavailable() -> str | None:
    """Return why LPIPS cannot be computed here, or None if it can."""
    path = weights_path()
    if not path.is_file():
        return f"weights missing: put torchvision's {WEIGHTS} into {path.parent}"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if not digest.startswith(SHA256_PREFIX):
        return f"weights unverified: SHA-256 of {WEIGHTS} starts with {digest[:8]}, not {SHA256_PREFIX}"
    return None


def weights_path() -> Path:
    """Return where torch's hub keeps the backbone's weights."""
    return Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS


def lpips_definition() -> str:
    """Return LPIPS's entry in the metric card."""
    reason = lpips_unavailable()
    if reason is not None:
        return f"unavailable: {reason.split(':')[0]}"
    return f"lpips package, AlexNet v0.1, backbone SHA-256 {SHA256_PREFIX}..., frames at their own size in [-1, 1]"


def lpips(frames: Tensor, truth: Tensor) -> Tensor:
    """LPIPS of each frame: [N, C, H, W] in [0, 1] -> [N]. Only to be called where `lpips_unavailable()` is None."""
    network = _network().to(frames.device)
    with torch.no_grad():
        values: Tensor = network(frames.float() * 2 - 1, truth.float() * 2 - 1).flatten()
    return values


@functools.cache
def _network() -> nn.Module:
    import_torchvision()
    import lpips as package

    return package.LPIPS(net="alex", version="0.1", verbose=False).eval()
