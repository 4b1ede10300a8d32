"""Mamba2 by mamba-ssm's kernels is Mamba2 by steps, as far as that can be had without a GPU; why they are not used."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rad_bench.blocks.fast import mamba2_kernels
from rad_bench.blocks.mamba2 import Mamba2
from rad_bench.blocks.memory import without_kernels

ROOT = Path(__file__).parents[2]
CUDA, CPU = torch.device("cuda"), torch.device("cpu")  # names of devices: nothing here needs them to be there
missing = [name for name in ("triton", "mamba_ssm") if importlib.util.find_spec(name) is None]


@pytest.mark.slow
@pytest.mark.skipif(bool(missing), reason=f"needs {' and '.join(missing)}: docs/gpu.md")
def test_kernels_compute_what_steps_do():
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    told = subprocess.run(
        [sys.executable, ROOT / "tests" / "blocks" / "interpreted.py"], capture_output=True, text=True, env=environment
    )
    assert told.returncode == 0, told.stderr
    found = json.loads(told.stdout)
    errors = {(case, part): error for case, parts in found["errors"].items() for part, error in parts.items()}
    assert not {case: error for case, error in errors.items() if not error <= 1e-5}
    assert found["calls"]["scan"] > 20 and found["calls"]["update"] > 2  # it was them


def test_kernels_are_not_used_without_a_cuda_device():
    path = Mamba2(8).path(CPU, torch.float32)
    assert path.name == "PyTorch, chunked scan"
    assert "CUDA device" in path.why


@pytest.mark.parametrize(
    ("dtype", "switch", "installed", "why"),
    [
        (torch.float64, "", True, "float64"),
        (torch.float32, "off", True, "BLOCK_KERNELS=off"),
        (torch.bfloat16, "", False, "mamba-ssm is not installed"),
    ],
)
def test_the_reason_why_kernels_are_not_used_is_told(monkeypatch, dtype, switch, installed, why):
    monkeypatch.setenv("BLOCK_KERNELS", switch)
    loaded = (lambda: (print, print)) if installed else (lambda: "mamba-ssm is not installed")
    monkeypatch.setattr(mamba2_kernels, "load", loaded)
    path = Mamba2(8).path(CUDA, dtype)
    assert path.name == "PyTorch, chunked scan"
    assert why in path.why


def test_kernels_are_used_on_cuda_where_they_can_be_imported_and_are_not_switched_off(monkeypatch):
    monkeypatch.setattr(mamba2_kernels, "load", lambda: (print, print))
    path = Mamba2(8).path(CUDA, torch.float32)
    assert path.name == "mamba-ssm's Triton kernels"
    assert "can be imported" in path.why
    with without_kernels():
        assert Mamba2(8).path(CUDA, torch.float32).name == "PyTorch, chunked scan"
    assert Mamba2(8).path(CUDA, torch.float32) == path


@pytest.mark.parametrize("absent", ["triton", "mamba_ssm"])
def test_a_missing_package_is_named(monkeypatch, absent):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == absent else real(name) or object())
    monkeypatch.setattr(mamba2_kernels.importlib, "import_module", lambda name: pytest.fail("nothing to import"))
    assert mamba2_kernels.load.__wrapped__() == f"{absent.replace('_', '-')} is not installed"


def test_an_installation_that_cannot_be_imported_is_a_reason_and_leaves_nothing_behind(monkeypatch, tmp_path):
    (tmp_path / "triton.py").touch()
    (tmp_path / "mamba_ssm" / "ops").mkdir(parents=True)
    (tmp_path / "mamba_ssm" / "__init__.py").write_text("raise ImportError('the parent is not to be imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] in ("triton", "mamba_ssm")]:
        monkeypatch.delitem(sys.modules, name)
    why = mamba2_kernels.load.__wrapped__()
    assert why.startswith("mamba-ssm cannot be imported: ModuleNotFoundError")
    assert "mamba_ssm" not in sys.modules
