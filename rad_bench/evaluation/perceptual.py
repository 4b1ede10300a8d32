"""LPIPS (Zhang et al. 2018, arXiv 1801.03924): the `lpips` package, AlexNet, v0.1, if verified weights are found.

The linear layers' weights come with the package. The backbone is torchvision's AlexNet, taken from torchvision's file
in torch's hub folder or from what `rad-bench weights lpips` has fetched. Scoring downloads nothing. Both sources are
verified by the hash of their tensors; if it is not the published one, the LPIPS column is absent, and the report says
why. Functions import torch when called, because the report reads only the definition.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from rad_bench.evaluation.weights import fetched_path, tensors_sha256

if TYPE_CHECKING:
    from torch import Tensor, nn

NETWORK = "alexnet"
TORCHVISION_FILE = "alexnet-owt-7be5be79.pth"
LAYERS = (0, 3, 6, 8, 10)  # convolutions in torchvision's `features`
BACKBONE_SHA256 = "44534cd66e37ce9a6258bb5e845ef8cd47c33aa68024441c7e616d63c0c1c41a"  # of its tensors: `tensors_sha256`
LINEAR_SHA256 = "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0"  # of the file of lpips 0.1.4
LPIPS_SMALLEST = 31  # pixels; AlexNet's pooling reduces smaller frames to nothing
LPIPS_DEFINITION = (
    f"lpips package, AlexNet v0.1, SHA-256 of the backbone's tensors {BACKBONE_SHA256[:8]}..., of the linear weights' "
    f"file {LINEAR_SHA256[:8]}...; frames of at least {LPIPS_SMALLEST} pixels, at their own size, in [-1, 1]"
)


@functools.cache
def lpips_unavailable() -> str | None:
    """Return why LPIPS cannot be computed here, or None if it can."""
    backbone = _backbone()
    if isinstance(backbone, str):
        return backbone
    digest = hashlib.sha256(linear_weights_path().read_bytes()).hexdigest()
    if digest != LINEAR_SHA256:
        return f"weights unverified: SHA-256 of {linear_weights_path().name} is {digest}, not {LINEAR_SHA256}"
    return None


def torchvision_path() -> Path:
    """Return where torch's hub keeps torchvision's file."""
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints" / TORCHVISION_FILE


def linear_weights_path() -> Path:
    """Return where the `lpips` package keeps the weights of its linear layers."""
    package = importlib.util.find_spec("lpips")
    assert package is not None and package.origin is not None
    return Path(package.origin).parent / "weights" / "v0.1" / "alex.pth"


def backbone_names() -> list[str]:
    """Return the names of the backbone's tensors, as torchvision calls them."""
    return [f"features.{layer}.{kind}" for layer in LAYERS for kind in ("weight", "bias")]


def lpips(frames: Tensor, truth: Tensor) -> Tensor:
    """Return the LPIPS of each frame: [N, C, H, W] in [0, 1] -> [N]. Call it only if `lpips_unavailable()` is None."""
    import torch

    network = _network().to(frames.device)
    with torch.no_grad():
        values: Tensor = network(frames.float() * 2 - 1, truth.float() * 2 - 1).flatten()
    return values


@functools.cache
def _backbone() -> dict[str, Tensor] | str:
    """Return the verified tensors of the backbone, or why there are none."""
    reasons = []
    for path in (torchvision_path(), fetched_path(NETWORK)):
        if not os.path.isfile(path):  # unlike Path.is_file, it accepts a home that must not be read
            continue
        try:
            tensors = _read(path)
        except Exception as error:  # whatever is raised for a file that is not what its name says
            reasons.append(f"{path} cannot be read ({type(error).__name__})")
            continue
        digest = tensors_sha256(tensors)
        if digest == BACKBONE_SHA256:
            return tensors
        reasons.append(f"SHA-256 of the tensors in {path} is {digest}, not {BACKBONE_SHA256}")
    if reasons:
        return f"weights unverified: {'; '.join(reasons)}"
    return "weights missing: `rad-bench weights lpips` fetches them"


def _read(path: Path) -> dict[str, Tensor]:
    import torch
    from safetensors.torch import load_file

    if path.suffix == ".safetensors":
        return load_file(path)
    tensors = torch.load(path, map_location="cpu", weights_only=True)
    return {name: tensors[name] for name in backbone_names()}


@functools.cache
def _network() -> nn.Module:
    from rad_bench.model.torchvision_import import import_torchvision

    import_torchvision()
    import lpips as package

    backbone = _backbone()
    assert not isinstance(backbone, str)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package calls torchvision by an older interface
        network: nn.Module = package.LPIPS(net="alex", version="0.1", pnet_rand=True, verbose=False)
    # The package splits torchvision's `features` into slices and keeps the layers' numbers: slice2.3 is features.3.
    names = network.net.state_dict()  # type: ignore[operator, union-attr]
    network.net.load_state_dict({name: backbone[f"features.{name.split('.', 1)[1]}"] for name in names})  # type: ignore[operator, union-attr]
    return network.eval()
