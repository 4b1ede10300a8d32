"""One run from start to finish: data, model, training, evaluation, and at the end `result.json`."""

from __future__ import annotations

import json
import math
import statistics
import time
from dataclasses import replace
from typing import Any

import torch
from safetensors.torch import save

from rad_bench.config import SCIENCE_VERSION, LaunchConfig, RunConfig
from rad_bench.errors import UserError
from rad_bench.evaluation.controls import CONTROLS
from rad_bench.evaluation.evaluate import Evaluation, evaluate, reach
from rad_bench.evaluation.metrics import metric_card
from rad_bench.evaluation.need import needs_of
from rad_bench.evaluation.probe import probe
from rad_bench.evaluation.strips import shown, strip
from rad_bench.model.experiment import Experiment, open_experiment
from rad_bench.model.registry import block_files, block_identity, is_built_in
from rad_bench.run.environment import commit, environment
from rad_bench.run.identity import Machine, training_key
from rad_bench.run.parity import measure_parity
from rad_bench.run.reuse import Training, reuse_training
from rad_bench.run.watch import Watch
from rad_bench.store.lease import Holder
from rad_bench.store.result import (
    Counts,
    Data,
    EvaluationTime,
    Match,
    Memory,
    MetricCard,
    Result,
    RolloutTimes,
    Strips,
    TrainingRecord,
)
from rad_bench.store.run_folder import Run, RunFolder, load_run
from rad_bench.training.device import be_deterministic, check_gpus, choose_device, device_name, resident_peak
from rad_bench.training.distributed import Group
from rad_bench.training.loop import saved_step, train

TIMED_STEPS = 5  # median time of so many steps is reported, at the start and at the end of a rollout


def execute(paths: RunFolder, launch: LaunchConfig, group: Group = Group()) -> None:
    """Finish a run. Does nothing if it is done; resumes if it was started.

    All processes of the group train, unless the weights of a finished run can be reused. Then rank 0 continues alone.
    """
    if group.broadcast("done", paths.is_done):
        return
    run = load_run(paths.path)
    block = _check_identity(run)
    if group.rank == 0:
        _check_progress(paths, run, launch)
    device = choose_device(launch.device, group)
    check_gpus(device, launch)
    be_deterministic(launch.threads, device)
    if group.rank == 0:
        _write_json(paths, "environment.json", environment(device, launch.threads, group.world))
    experiment = open_experiment(run.config, device)
    if group.rank == 0 and not is_built_in(run.config.memory):
        for code in block_files(run.config.memory):  # kept beside the result
            paths.replace(paths.path / "block" / code.name, lambda file, code=code: file.write(code.read_bytes()))  # type: ignore[misc]
    trunk = experiment.trunk
    trunk_hash = trunk.trunk_hash()
    parity = measure_parity(run.config.memory.name, trunk.memory_block(), trunk.scan.tokens_per_step, device)
    plan = experiment.plan
    key = training_key(run.config, experiment.dataset, plan.options, Machine(device, launch, group.world))
    trained = _train(run.name, key, experiment, paths, launch, group)
    if trained is None:
        return
    average = trained.average
    weights = save({name: p.contiguous() for name, p in average.state_dict().items()})
    paths.replace(paths.weights, lambda file: file.write(weights))

    def log(done: int, of: int) -> None:
        paths.append(paths.log, json.dumps({"phase": "evaluation", "done": done, "of": of}))

    began = time.perf_counter()
    finished = replace(experiment, trunk=average)
    evaluation = evaluate(finished, log)
    probe_scores = probe(finished)
    seconds = time.perf_counter() - began
    _write_frames(run, evaluation, paths)
    for name, frames in evaluation.strips.items():
        image = strip(frames)
        paths.replace(paths.strips / f"{name}.png", lambda file, image=image: image.save(file, "PNG"))  # type: ignore[misc]
    config = run.config
    result = Result(
        run=run.name,
        block=run.label,
        seed=config.seed,
        axes=run.axes,
        memory=Memory(name=config.memory.name, options=plan.options, identity=block),
        parameters=Counts(memory=plan.memory_parameters, trunk=plan.trunk_parameters),
        match=Match(by=config.match.by, budget=plan.budget, residual=plan.residual),
        flops_per_frame=Counts(memory=plan.memory_flops, trunk=plan.trunk_flops),
        state_bytes=plan.state_bytes,
        window_bytes=plan.window_bytes,
        reach=reach(config),
        training=_training_record(trained, key),
        rollout=_rollout_times(config, evaluation),
        evaluation=EvaluationTime(seconds=seconds),
        peak_memory_bytes=max(_peak_memory(device), trained.peak_memory),
        device=device_name(device),
        threads=launch.threads,
        processes=group.world,
        trunk_hash=trunk_hash,
        metrics=MetricCard(**metric_card()),
        science_version=SCIENCE_VERSION,
        commit=commit(),
        episodes=config.evaluation.episodes,
        data=Data(identity=experiment.dataset.identity, name=config.data.name, codec=experiment.codec.identity),
        strips={
            task: Strips(episodes=episodes, frames=shown(evaluation.horizons[task]))
            for task, episodes in evaluation.shown.items()
        },
        probe=probe_scores,
        parity=parity,
        need=needs_of(config, experiment.dataset),
    )
    _write_json(paths, paths.result.name, result.model_dump())
    for path in (paths.checkpoint, paths.checkpoint_before, paths.start):
        path.unlink(missing_ok=True)  # not earlier: a killed run resumes from them


def _train(
    name: str, key: str, experiment: Experiment, paths: RunFolder, launch: LaunchConfig, group: Group
) -> Training | None:
    """Train with the group, or reuse the weights of a run with the same key. Only rank 0 gets the outcome."""
    seed, device = experiment.config.seed, experiment.device
    reused = reuse_training(paths.path.parent, key, seed, experiment.trunk) if group.rank == 0 else None
    if group.broadcast("trained before", reused is not None):
        return reused
    with group.connected(device):
        watch = Watch(experiment, paths, launch)
        average, progress = train(experiment, paths, launch, group, watch)
        watch.close()
    return Training(average, progress, _peak_memory(device), name) if group.rank == 0 else None


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
        first = json.loads(paths.start.read_text())
        same_place = (first["job"], first["step"]) == (holder.job, step)
        starts = holder.restarts - first["restarts"] if same_place else 0
    except (OSError, ValueError, KeyError, TypeError):  # the job's first start, or a partly written file
        starts = 0
    if starts < 1:
        _write_json(paths, paths.start.name, {"job": holder.job, "restarts": holder.restarts, "step": step})
    elif starts >= launch.attempts:
        paths.start.unlink()  # a user who submits the job again gets new attempts
        trained = step >= run.config.training.steps
        where = "in evaluation, which cannot be resumed," if trained else f"at step {step}"
        advice = "" if trained else ", or lower run.training.checkpoint_every"
        raise UserError(
            f"started {starts} times {where} without progress; its time limit (launch.slurm.timeout: "
            f"{launch.slurm.timeout}) may be too short, or it is preempted too often: raise the limit{advice}."
        )


def _write_json(paths: RunFolder, name: str, value: Any) -> None:
    text = json.dumps(value, indent=1, sort_keys=True, default=str) + "\n"
    paths.replace(paths.path / name, lambda file: file.write(text.encode()))


def _write_frames(run: Run, evaluation: Evaluation, paths: RunFolder) -> None:
    frames = evaluation.frames
    frames.insert(0, "run", paths.path.name)
    frames["block"] = frames["block"].where(frames["block"].isin(CONTROLS), run.label)
    frames["seed"] = run.config.seed
    paths.replace(paths.frames, lambda file: frames.to_parquet(file, index=False))


def _training_record(trained: Training, key: str) -> TrainingRecord:
    progress = trained.progress
    return TrainingRecord(
        steps=progress.step,
        seconds=progress.seconds,
        seconds_per_step=progress.seconds / progress.step,
        share_waiting_for_data=progress.seconds_waiting / max(progress.seconds, 1e-9),
        loss_first=None if math.isnan(progress.loss_first) else progress.loss_first,
        loss_last=progress.loss_last,
        peak_memory_bytes=trained.peak_memory,
        by=trained.by,
        key=key,
    )


def _rollout_times(config: RunConfig, evaluation: Evaluation) -> RolloutTimes:
    per_frame = [seconds / config.trunk.frames_per_step / evaluation.videos for seconds in evaluation.seconds]
    return RolloutTimes(
        seconds_per_frame_start=statistics.median(per_frame[:TIMED_STEPS]),
        seconds_per_frame_end=statistics.median(per_frame[-TIMED_STEPS:]),
        videos=evaluation.videos,
    )
