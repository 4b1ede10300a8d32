"""LPIPS (Zhang et al. 2018, arXiv 1801.03924): the `lpips` package, AlexNet, v0.1, if verified weights are installed.

The backbone's weights are torchvision's file in torch's hub folder; the weights of the linear layers come with the
package. Nothing is downloaded. If the SHA-256 of a file is not the published one, the file is not used, the LPIPS
column is absent, and the report says why. Functions import torch when called, because the report reads only the
definition.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

WEIGHTS = "alexnet-owt-7be5be79.pth"
BACKBONE_SHA256 = "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02"
LINEAR_SHA256 = "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0"  # of lpips 0.1.4
LPIPS_SMALLEST = 31  # pixels; AlexNet's pooling reduces smaller frames to nothing
LPIPS_DEFINITION = (
    f"lpips package, AlexNet v0.1, SHA-256 of the backbone {BACKBONE_SHA256[:8]}..., of the linear weights "
    f"{LINEAR_SHA256[:8]}...; frames of at least {LPIPS_SMALLEST} pixels, at their own size, in [-1, 1]"
)


@functools.cache
def lpips_unavailable() -> str | None:
    """Return why LPIPS cannot be computed here, or None if it can."""
    backbone, linear = weights_path(), linear_weights_path()
    if not os.path.isfile(backbone):  # unlike Path.is_file, it accepts a home that must not be read
        return f"weights missing: put torchvision's {WEIGHTS} into {backbone.parent}"
    for path, published in ((backbone, BACKBONE_SHA256), (linear, LINEAR_SHA256)):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest != published:
            return f"weights unverified: SHA-256 of {path.name} is {digest}, not {published}"
    return None


def weights_path() -> Path:
    """Return where torch's hub keeps the backbone's weights."""
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS


def linear_weights_path() -> Path:
    """Return where the `lpips` package keeps the weights of its linear layers."""
    package = importlib.util.find_spec("lpips")
    assert package is not None and package.origin is not None
    return Path(package.origin).parent / "weights" / "v0.1" / "alex.pth"


def lpips(frames: Tensor, truth: Tensor) -> Tensor:
    """Return the LPIPS of each frame: [N, C, H, W] in [0, 1] -> [N]. Call it only if `lpips_unavailable()` is None."""
    import torch

    network = _network().to(frames.device)
    with torch.no_grad():
        values: Tensor = network(frames.float() * 2 - 1, truth.float() * 2 - 1).flatten()
    return values


@functools.cache
def _network() -> nn.Module:
    from rad_bench.model.torchvision_import import import_torchvision

    import_torchvision()
    import lpips as package

    return package.LPIPS(net="alex", version="0.1", verbose=False).eval()
