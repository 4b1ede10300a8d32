"""Let a block's state go on in another process, where nothing is left of this one but the state and the weights."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rad_bench.blocks.contract.probe import Probe
from rad_bench.blocks.memory import MemoryBlock, State, leaves

LIMIT = 300  # seconds


def go_on(block: MemoryBlock, x_STKD: Tensor, noisy_STKD: Tensor, state: State) -> list[Tensor]:
    """Return the outputs of all methods from a state on, and the last state's tensors."""
    prefetched = block.prefetch(x_STKD, state)
    retrieved = block.retrieve(noisy_STKD, prefetched)
    y_SKD, after = block.step(noisy_STKD[:, 0], prefetched.state)
    read_SKD = block.read(noisy_STKD[:, 0], prefetched.state)
    return [prefetched.y_STKD, retrieved, y_SKD, read_SKD, *leaves(prefetched.state), *leaves(after)]


def go_on_elsewhere(probe: Probe, x_STKD: Tensor, noisy_STKD: Tensor, state: State) -> list[Tensor]:
    """Return what `go_on` does with another instance of the block, with the same weights, in a new process."""
    case, block_class = probe.case, probe.case.block_class
    try:
        source = inspect.getfile(block_class)
    except (OSError, TypeError):
        raise AssertionError("its class is not in a file, so another process cannot load it") from None
    request = {
        "class": (block_class.__module__, str(Path(source).resolve()), block_class.__qualname__),
        "options": dict(case.options), "dim": case.dim, "device": str(case.device), "training": probe.block.training,
        "weights": probe.block.state_dict(), "dtype": case.dtype,
        "x": x_STKD.clone(), "noisy": noisy_STKD.clone(), "state": state,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        given, answer = Path(folder, "given"), Path(folder, "answer")
        torch.save(request, given)
        code = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import main; main(*sys.argv[1:])"
        command = [sys.executable, "-c", code, str(given), str(answer)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=LIMIT)
        lines = done.stderr.strip().splitlines() or [f"it ended with code {done.returncode}"]
        assert not done.returncode, f"another process cannot go on from the state: {lines[-1]}"
        outputs: list[Tensor] = torch.load(answer, map_location=case.device, weights_only=True)
    return outputs


@torch.no_grad()
def main(given: str, answer: str) -> None:
    """Go on from a request's state, and write the outputs."""
    torch.set_num_threads(1)
    request: dict[str, Any] = torch.load(given, weights_only=True)
    block_class = _load(*request["class"])
    device = torch.device(request["device"])
    block = block_class(request["dim"], **request["options"]).to(device, request["dtype"])
    block.load_state_dict(request["weights"])
    block.train(request["training"])
    torch.save(go_on(block, request["x"], request["noisy"], request["state"]), answer)


def _load(module_name: str, file: str, class_name: str) -> type[MemoryBlock]:
    """Import a class by its module's name, or if no module has that name, from its file."""
    sys.path.append(str(Path(file).parents[module_name.count(".")]))
    spec = importlib.util.find_spec(module_name)
    if spec is not None:
        module = importlib.import_module(module_name)
    else:
        spec = importlib.util.spec_from_file_location(module_name, file)
        assert spec is not None and spec.loader is not None
        module = sys.modules[module_name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    found: Any = module
    for name in class_name.split("."):
        found = getattr(found, name)
    return found  # type: ignore[no-any-return]
