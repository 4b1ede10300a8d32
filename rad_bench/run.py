"""One run from start to finish: data, model, training, evaluation, and `result.json` last of all."""

from __future__ import annotations

import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from rad_bench import __version__
from rad_bench.config import SCIENCE_VERSION, LaunchConfig
from rad_bench.data import Dataset, open_dataset
from rad_bench.data.encoded import Encoded
from rad_bench.data.recordings import Recordings
from rad_bench.evaluation.evaluate import CONTROLS, Evaluation, evaluate, reach
from rad_bench.evaluation.metrics import metric_card
from rad_bench.evaluation.probe import probe
from rad_bench.model.budget import ModelPlan, build_trunk
from rad_bench.model.codec import open_codec
from rad_bench.run_folder import Run, RunFolder, load_run, write_atomically
from rad_bench.training import Progress, train

STRIP_FRAMES = 20  # frames of a strip, evenly spread over the horizon
TIMED_STEPS = 5  # steps at either end of a rollout whose median time is reported


def execute(folder: Path, launch: LaunchConfig) -> None:
    """Bring the run in `folder` to its end. Does nothing if it is done; resumes if it was begun."""
    paths = RunFolder(folder)
    if paths.is_done:
        return
    run = load_run(folder)
    device = choose_device(launch.device)
    _be_deterministic(launch.threads, device)
    write_atomically(folder / "environment.json", _json(environment(device, launch.threads)))
    dataset: Dataset = open_dataset(run.config.data)
    codec = open_codec(run.config.autoencoder, dataset.frame_shape)
    if not codec.lossless and isinstance(dataset, Recordings):
        dataset = Encoded(dataset, codec, device)
    trunk, plan = build_trunk(run.config, codec.frame_shape, dataset.action_size)
    trunk_hash = trunk.trunk_hash()
    average, progress = train(run.config, trunk.to(device), dataset, codec, paths, device, launch.loaders)
    save_file({name: p.contiguous() for name, p in average.state_dict().items()}, folder / "model.safetensors")

    def log(done: int, of: int) -> None:
        with paths.log.open("a") as file:
            file.write(json.dumps({"phase": "evaluation", "done": done, "of": of}) + "\n")

    began = time.perf_counter()
    evaluation = evaluate(run.config, average, dataset, codec, device, log)
    read = probe(run.config, average, dataset, codec, device)
    seconds = time.perf_counter() - began
    _write_frames(run, evaluation, paths)
    for name, frames in evaluation.strips.items():
        _write_strip(paths.strips / f"{name}.png", frames)
    result = _result(run, plan, progress, evaluation, device, launch.threads)
    result["evaluation"] = {"seconds": seconds}
    result["trunk_hash"] = trunk_hash
    result["probe"] = read
    result["strips"] = {
        task: {"episodes": episodes, "frames": _shown(evaluation.horizons[task])}
        for task, episodes in evaluation.shown.items()
    }
    result["data"] = {"identity": dataset.identity, "name": run.config.data.name, "codec": codec.identity}
    write_atomically(paths.result, _json(result))
    paths.failure.unlink(missing_ok=True)


def choose_device(name: str) -> torch.device:
    """Return the device that `launch.device` names; auto takes a GPU where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def environment(device: torch.device, threads: int) -> dict[str, Any]:
    """Return what the run ran on and with."""
    packages = ("torch", "numpy", "pandas", "scikit-image", "submitit", "lpips", "torchvision")
    versions = {}
    for name in packages:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "rad_bench": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": _device_name(device),
        "threads": threads,
        "packages": versions,
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
    }


def _be_deterministic(threads: int, device: torch.device) -> None:
    torch.set_num_threads(threads)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=device.type == "cuda")
    # Filling memory before its first write only costs time: nothing here reads what was not written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    return f"cpu ({model})"


def _commit() -> str | None:
    """Return the commit of the checkout that this package runs from, if it is one."""
    root = Path(__file__).resolve().parents[1]
    try:
        git = ["git", "-C", str(root)]
        if not (root / ".git").exists():
            return None
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10)
        dirty = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return commit.stdout.strip()[:12] + (" (dirty)" if dirty.stdout.strip() else "")


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, default=str) + "\n").encode()


def _write_frames(run: Run, evaluation: Evaluation, paths: RunFolder) -> None:
    frames = evaluation.frames
    frames.insert(0, "run", paths.path.name)
    frames["block"] = frames["block"].where(frames["block"].isin(CONTROLS), run.label)
    frames["seed"] = run.config.seed
    temporary = paths.frames.with_name(".frames.parquet.tmp")
    frames.to_parquet(temporary, index=False)
    os.replace(temporary, paths.frames)


def _shown(horizon: int) -> list[int]:
    """Return which generated frames a strip shows: at most STRIP_FRAMES, evenly spread."""
    return torch.linspace(0, horizon - 1, min(STRIP_FRAMES, horizon)).round().int().tolist()


def _write_strip(path: Path, frames: Tensor) -> None:
    """Write frames [H, C, h, w] side by side, a white pixel between them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    framed = F.pad(frames[_shown(len(frames))], (0, 1), value=255)
    Image.fromarray(torch.cat(list(framed), -1)[..., :-1].permute(1, 2, 0).numpy()).save(path)


def _result(
    run: Run, plan: ModelPlan, progress: Progress, evaluation: Evaluation, device: torch.device, threads: int
) -> dict[str, Any]:
    config = run.config
    longest = max(evaluation.seconds.values(), key=len)
    per_frame = [seconds / config.trunk.frames_per_step / evaluation.videos for seconds in longest]
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _resident_peak()
    return {
        "format": 1,
        "run": run.name,
        "block": run.label,
        "seed": config.seed,
        "axes": run.axes,
        "memory": {"name": config.memory.name, "options": plan.options},
        "parameters": {"memory": plan.memory_parameters, "trunk": plan.trunk_parameters},
        "match": {"by": config.match.by, "budget": plan.budget, "residual": plan.residual},
        "flops_per_frame": {"memory": plan.memory_flops, "trunk": plan.trunk_flops},
        "state_bytes": {str(frames): count for frames, count in plan.state_bytes.items()},
        "reach": reach(config),
        "training": {
            "steps": progress.step,
            "seconds": progress.seconds,
            "seconds_per_step": progress.seconds / progress.step,
            "share_waiting_for_data": progress.seconds_waiting / max(progress.seconds, 1e-9),
            "loss_first": None if math.isnan(progress.loss_first) else progress.loss_first,
            "loss_last": progress.loss_last,
        },
        "rollout": {
            "seconds_per_frame_start": statistics.median(per_frame[:TIMED_STEPS]),
            "seconds_per_frame_end": statistics.median(per_frame[-TIMED_STEPS:]),
            "videos": evaluation.videos,
        },
        "peak_memory_bytes": peak,
        "device": _device_name(device),
        "threads": threads,
        "metrics": metric_card(),
        "science_version": SCIENCE_VERSION,
        "commit": _commit(),
        "episodes": config.evaluation.episodes,
    }


def _resident_peak() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
