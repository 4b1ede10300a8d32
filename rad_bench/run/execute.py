"""One run from start to finish: data, model, training, evaluation, and at the end `result.json`."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import torch

from rad_bench.config import LaunchConfig, MemoryConfig
from rad_bench.errors import UserError
from rad_bench.evaluation.evaluate import evaluate, parts
from rad_bench.evaluation.probe import probe
from rad_bench.model.experiment import Experiment, open_experiment
from rad_bench.model.graphs import record_on_cuda
from rad_bench.model.registry import block_files, block_identity, is_built_in
from rad_bench.run.curve import evaluate_snapshots, write_curve
from rad_bench.run.environment import environment
from rad_bench.run.identity import Machine, training_key
from rad_bench.run.outputs import write_json, write_scores
from rad_bench.run.parity import measure_parity
from rad_bench.run.record import Evaluated, Start, make_result
from rad_bench.run.reuse import Training, keep_training, reuse_training
from rad_bench.run.tracking import Tracker
from rad_bench.run.watch import Watch
from rad_bench.store.lease import Holder
from rad_bench.store.run_folder import Run, RunFolder, load_run
from rad_bench.training.checkpoint import saved_step
from rad_bench.training.device import be_deterministic, check_gpus, choose_device, resident_peak
from rad_bench.training.distributed import Group
from rad_bench.training.loop import train


def execute(paths: RunFolder, launch: LaunchConfig, group: Group = Group()) -> None:
    """Finish a run. Does nothing if it is done; resumes if it was started.

    All processes of the group train, unless the weights of a trained run can be reused. Then rank 0 continues alone.
    """
    if group.broadcast("done", paths.is_done):
        return
    start = _start(paths, launch, group)
    tracker = Tracker(start.run, paths) if launch.wandb and group.rank == 0 else None
    trained = _train(start, paths, group, tracker)
    if trained is None:
        return
    keep_training(paths, trained, start.key)
    evaluated = _evaluate(start.run, replace(start.experiment, trunk=trained.average), paths)
    write_scores(start.run, evaluated.evaluation, paths)
    if tracker is not None:
        tracker.scores(start.run, evaluated.evaluation)
        tracker.close()
    peak_memory = max(_peak_memory(start.experiment.device), trained.peak_memory)
    write_json(paths, paths.result.name, make_result(start, trained, evaluated, peak_memory).model_dump())
    for path in (paths.checkpoint, paths.checkpoint_before, paths.start):
        path.unlink(missing_ok=True)  # not earlier: a killed run resumes from them


def _start(paths: RunFolder, launch: LaunchConfig, group: Group) -> Start:
    """Check that the run can start, open its experiment, and keep the environment and a user's block in its folder."""
    run = load_run(paths.path)
    block = _check_identity(run)
    if group.rank == 0:
        _check_progress(paths, run, launch)
    device = choose_device(launch.device, group)
    check_gpus(device, launch)
    be_deterministic(launch.threads, device)
    if group.rank == 0:
        write_json(paths, "environment.json", environment(device, launch.threads, group.world))
    record = record_on_cuda if launch.cuda_graphs and device.type == "cuda" else None
    experiment = open_experiment(run.config, device, record)
    _check_data(run, experiment)
    if group.rank == 0:
        _keep_block(run.config.memory, paths)
    trunk, options = experiment.trunk, experiment.plan.options
    trunk_hash = trunk.trunk_hash()
    parity = measure_parity(run.config.memory.name, trunk.memory_block(), trunk.scan.tokens_per_step, device)
    key = training_key(run.config, experiment.dataset, options, Machine(device, launch, group.world))
    return Start(run, launch, group.world, experiment, block, key, trunk_hash, parity)


def _train(start: Start, paths: RunFolder, group: Group, tracker: Tracker | None) -> Training | None:
    """Train with the group, or reuse the weights of a run with the same key. Only rank 0 gets the outcome."""
    experiment, name = start.experiment, start.run.name
    config, device = experiment.config, experiment.device
    reused = reuse_training(paths, start.key, config, experiment.trunk) if group.rank == 0 else None
    if group.broadcast("trained before", reused is not None):
        return reused
    with group.connected(device):
        watch = Watch(experiment, paths, start.launch, tracker)
        average, progress = train(experiment, paths, start.launch, group, watch)
        watch.close()
    return Training(average, progress, _peak_memory(device), name) if group.rank == 0 else None


def _evaluate(run: Run, experiment: Experiment, paths: RunFolder) -> Evaluated:
    """Evaluate the final weights and the snapshots; write the learning curve, if there are snapshots."""

    def log(done: int, of: int) -> None:
        paths.append(paths.log, json.dumps({"phase": "evaluation", "done": done, "of": of}))

    began = time.perf_counter()
    config = run.config.evaluation
    first, others = parts(config), len(config.tasks) * len(config.at)
    evaluation = evaluate(experiment, lambda done, of: log(done, of + others))
    probe_scores = probe(experiment)
    snapshots = evaluate_snapshots(experiment, paths, lambda done: log(first + done, first + others))
    if snapshots:
        write_curve(run, {**snapshots, run.config.training.steps: evaluation.frames}, paths)
    return Evaluated(evaluation, probe_scores, time.perf_counter() - began)


def _peak_memory(device: torch.device) -> int:
    """Return the peak memory of this process in bytes: of the GPU, or else of the process."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else resident_peak()


def _check_identity(run: Run) -> str:
    """Return the block's identity. Raises `UserError` if its code has changed since the run was planned."""
    identity = block_identity(run.config.memory)
    if run.block not in ("", identity):
        raise UserError(
            f"memory: block '{run.config.memory.name}' has changed since this run was planned ({run.block}, "
            f"now {identity}), so its result would get the old block's name. Start the sweep again: it plans a run of "
            "the new block."
        )
    return identity


def _check_data(run: Run, experiment: Experiment) -> None:
    """Raise `UserError` if the data have changed since the run was planned."""
    identity = experiment.dataset.identity
    if run.data not in ("", identity):
        raise UserError(
            f"data: the {run.config.data.name} data have changed since this run was planned ({run.data}, now "
            f"{identity}), so its result would get the old data's name. Start the sweep again: it plans a run on the "
            "new data."
        )


def _check_progress(paths: RunFolder, run: Run, launch: LaunchConfig) -> None:
    """Raise `UserError` if SLURM has started this job `launch.attempts` times without progress.

    SLURM requeues a job that was preempted or reached its time limit. Without this check, a job that makes no progress
    would be requeued forever.
    """
    holder = Holder.this()
    if holder.job is None:
        return
    step = saved_step(paths)
    try:
        first = json.loads(paths.start.read_text(encoding="utf-8"))
        same_place = (first["job"], first["step"]) == (holder.job, step)
        starts = holder.restarts - first["restarts"] if same_place else 0
    except (OSError, ValueError, KeyError, TypeError):  # the job's first start, or a partly written file
        starts = 0
    if starts < 1:
        write_json(paths, paths.start.name, {"job": holder.job, "restarts": holder.restarts, "step": step})
    elif starts >= launch.attempts:
        paths.start.unlink()  # a user who submits the job again gets new attempts
        trained = step >= run.config.training.steps
        where = "in evaluation, which cannot be resumed," if trained else f"at step {step}"
        advice = "" if trained else ", or lower run.training.checkpoint_every"
        raise UserError(
            f"started {starts} times {where} without progress; its time limit (launch.slurm.timeout: "
            f"{launch.slurm.timeout}) may be too short, or it is preempted too often: raise the limit{advice}."
        )


def _keep_block(memory: MemoryConfig, paths: RunFolder) -> None:
    """Copy the files of a user's own block into the run's folder."""
    if is_built_in(memory):
        return
    for code in block_files(memory):
        paths.replace(paths.path / "block" / code.name, lambda file, code=code: file.write(code.read_bytes()))  # type: ignore[misc]
