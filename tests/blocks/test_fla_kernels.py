"""Blocks by flash-linear-attention's kernels are the same by steps, as far as can be had without a GPU; why they are
not used."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from rad_bench.blocks import contract
from rad_bench.blocks.contract import check_block
from rad_bench.blocks.fast import fla_kernels, kernels
from rad_bench.blocks.memory import without_kernels
from rad_bench.model.registry import find_block

ROOT = Path(__file__).parents[2]
CUDA, CPU = torch.device("cuda"), torch.device("cpu")  # names of devices: nothing here needs them to be there
BLOCKS = ["gated_deltanet", "kda", "mamba3", "mlstm"]
PLAIN, FAST = "PyTorch, in chunks", "flash-linear-attention's Triton kernels"
absent = [name for name in ("triton", "fla") if importlib.util.find_spec(name) is None]


@pytest.mark.slow
@pytest.mark.skipif(bool(absent), reason=f"needs {' and '.join(absent)}: docs/gpu.md")
@pytest.mark.parametrize("name", BLOCKS)
def test_kernels_compute_what_steps_do(name):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    program = [sys.executable, ROOT / "tests" / "blocks" / "interpreted_fla.py", name]
    told = subprocess.run(program, capture_output=True, text=True, env=environment)
    assert told.returncode == 0, told.stderr
    found = json.loads(told.stdout)
    errors = {(case, part): error for case, parts in found["errors"].items() for part, error in parts.items()}
    allowed = {"fp32": 0.05, "bf16": 1.0}  # parts of what `rad-bench check` allows
    assert not {case: error for case, error in errors.items() if not error <= allowed[case[1]]}
    assert found["calls"] >= 20  # it was them


def slow_kernel(q, k, v, g, scale, initial_state, output_final_state, state_v_first, beta=None):
    """Do what the package documents of all rules, [S, L, H, ...], token by token; only the delta rules have beta."""
    assert scale == 1.0 and output_final_state and state_v_first
    assert beta is not None or q.shape[-1] % 2 == v.shape[-1] % 2 == 0  # the third refuses odd numbers, if in bf16
    M, read = initial_state, []
    strength = torch.ones(k.shape[:3]) if beta is None else beta
    for q_t, k_t, v_t, g_t, b_t in zip(*(x.unbind(1) for x in (q, k, v, g, strength)), strict=True):
        M = M * (g_t if g_t.dim() == 3 else g_t[..., None])[..., None, :].exp()
        wrong = v_t if beta is None else v_t - torch.einsum("shvk,shk->shv", M, k_t)
        M = M + torch.einsum("sh,shv,shk->shvk", b_t, wrong, k_t)
        read.append(torch.einsum("shvk,shk->shv", M, q_t))
    return torch.stack(read, 1), M


@pytest.mark.parametrize("form", ["adapted", "paper"])
@pytest.mark.parametrize(("name", "options"), [*((name, {}) for name in BLOCKS), ("mamba3", {"rank": 3})])
def test_frames_that_only_read_change_nothing(monkeypatch, name, options, form):
    monkeypatch.setattr(contract, "FRAMES", 19)
    monkeypatch.setattr(fla_kernels, "unavailable", lambda *_: "")
    monkeypatch.setattr(fla_kernels, "load", lambda: dict.fromkeys(fla_kernels.RULES, slow_kernel))
    options = {"head_dim": 3, "form": form, **options}
    outcomes = check_block(find_block(name), options, dtype=torch.float32, thorough=False)
    assert not [outcome for outcome in outcomes if not outcome.passed]


@pytest.mark.parametrize("name", BLOCKS)
def test_kernels_are_not_used_without_a_cuda_device(name):
    path = find_block(name)(8, form="adapted").path(CPU, torch.float32)
    assert path.name == PLAIN
    assert "CUDA device" in path.why


@pytest.mark.parametrize(
    ("dtype", "switch", "head_dim", "installed", "why"),
    [
        (torch.float64, "", 16, True, "float64"),
        (torch.float32, "off", 16, True, "BLOCK_KERNELS=off"),
        (torch.float32, "", 257, True, "more than 256 channels"),
        (torch.bfloat16, "", 16, False, "fla-core is not installed"),
    ],
)
def test_the_reason_why_kernels_are_not_used_is_told(monkeypatch, dtype, switch, head_dim, installed, why):
    monkeypatch.setenv("BLOCK_KERNELS", switch)
    monkeypatch.setattr(fla_kernels, "load", lambda: {} if installed else "fla-core is not installed")
    path = find_block("gated_deltanet")(8, head_dim=head_dim).path(CUDA, dtype)
    assert path.name == PLAIN
    assert why in path.why


@pytest.mark.parametrize("name", BLOCKS)
def test_kernels_are_used_on_cuda_where_they_can_be_imported_and_are_not_switched_off(monkeypatch, name):
    monkeypatch.setattr(fla_kernels, "load", dict)
    block = find_block(name)(8, form="adapted")
    path = block.path(CUDA, torch.float32)
    assert path.name == FAST
    assert "can be imported" in path.why
    with without_kernels():
        assert block.path(CUDA, torch.float32).name == PLAIN
    assert block.path(CUDA, torch.float32) == path


def test_a_missing_package_is_named(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "fla" else real(name) or object())
    assert fla_kernels.load.__wrapped__() == "fla-core is not installed"


def test_an_installation_that_cannot_be_imported_is_a_reason(monkeypatch, tmp_path):
    (tmp_path / "triton.py").touch()
    (tmp_path / "fla").mkdir()
    (tmp_path / "fla" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] in ("triton", "fla")]:
        monkeypatch.delitem(sys.modules, name)
    assert fla_kernels.load.__wrapped__().startswith("fla-core cannot be imported: ModuleNotFoundError")


def test_wrong_gradients_on_hopper_are_a_reason(monkeypatch):
    chunk_o = SimpleNamespace(IS_NVIDIA_HOPPER=True, TRITON_ABOVE_3_4_0=True, TRITON_ABOVE_3_7_1=False)
    solver = SimpleNamespace(SOLVE_TRIL_DOT_PRECISION="tf32")
    found = dict.fromkeys(fla_kernels.SOLVERS, solver) | {"fla.ops.common.chunk_o": chunk_o}
    found |= {module: SimpleNamespace(**{name: print}) for module, name in fla_kernels.RULES.values()}
    monkeypatch.setattr(kernels, "missing", lambda *_: "")
    monkeypatch.setattr(importlib, "import_module", found.get)
    assert "Hopper" in fla_kernels.load.__wrapped__()
    chunk_o.TRITON_ABOVE_3_7_1 = True
    assert fla_kernels.load.__wrapped__() == dict.fromkeys(fla_kernels.RULES, print)
    assert solver.SOLVE_TRIL_DOT_PRECISION == "ieee"
