"""One run from start to finish: data, model, training, evaluation, and `result.json` last of all."""

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
from rad_bench.evaluation.probe import probe
from rad_bench.evaluation.strips import shown, strip
from rad_bench.model.experiment import Experiment, open_experiment
from rad_bench.model.registry import block_files, block_identity, is_built_in
from rad_bench.run.environment import commit, environment
from rad_bench.run.identity import Machine, training_key
from rad_bench.run.parity import badge
from rad_bench.run.reuse import Training, take_up
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

TIMED_STEPS = 5  # steps at either end of a rollout whose median time is reported


def execute(paths: RunFolder, launch: LaunchConfig, group: Group = Group()) -> None:
    """Bring a run to its end. Does nothing if it is done; resumes if it was begun.

    All processes of the group train, unless a finished run beside this one has done so; then rank 0 goes on alone.
    """
    if group.broadcast("done", paths.is_done):
        return
    run = load_run(paths.path)
    block = _checked_identity(run)
    if group.rank == 0:
        _check_further(paths, run, launch)
    device = choose_device(launch.device, group)
    check_gpus(device, launch)
    be_deterministic(launch.threads, device)
    if group.rank == 0:
        _write_json(paths, "environment.json", environment(device, launch.threads, group.world))
    experiment = open_experiment(run.config, device)
    if group.rank == 0 and not is_built_in(run.config.memory):
        for code in block_files(run.config.memory):  # kept beside what it gave
            paths.replace(paths.path / "block" / code.name, lambda file, code=code: file.write(code.read_bytes()))  # type: ignore[misc]
    trunk = experiment.trunk
    trunk_hash = trunk.trunk_hash()
    parity = badge(run.config.memory.name, trunk.memory_block(), trunk.scan.tokens_per_step, device)
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
    read = probe(finished)
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
        probe=read,
        parity=parity,
    )
    _write_json(paths, paths.result.name, result.model_dump())
    for path in (paths.checkpoint, paths.checkpoint_before, paths.start):
        path.unlink(missing_ok=True)  # only now: a run that is killed goes on from them


def _train(
    name: str, key: str, experiment: Experiment, paths: RunFolder, launch: LaunchConfig, group: Group
) -> Training | None:
    """Train together, or take up what another run has trained from the same key; return what came of it to rank 0."""
    seed, device = experiment.config.seed, experiment.device
    standing = take_up(paths.path.parent, key, seed, experiment.trunk) if group.rank == 0 else None
    if group.broadcast("trained before", standing is not None):
        return standing
    with group.connected(device):
        watch = Watch(experiment, paths, launch)
        average, progress = train(experiment, paths, launch, group, watch)
        watch.close()
    return Training(average, progress, _peak_memory(device), name) if group.rank == 0 else None


def _peak_memory(device: torch.device) -> int:
    """Return the most bytes that this process has held on its device; on the CPU, at all."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else resident_peak()


def _checked_identity(run: Run) -> str:
    """Return the block's identity. Raises `UserError` if it is not the one that was planned, days ago it may be."""
    now = block_identity(run.config.memory)
    if run.block not in ("", now):
        raise UserError(
            f"memory: block '{run.config.memory.name}' has changed since this run was planned ({run.block}, now {now}),"
            " and its result would stand under the old one's name. Start the sweep again: it plans a run of the new "
            "one."
        )
    return now


def _check_further(paths: RunFolder, run: Run, launch: LaunchConfig) -> None:
    """Raise `UserError` if SLURM has started this job `launch.attempts` times already where it would start now.

    A job that is preempted or reaches its time limit goes back into the queue by itself. Where it gets further each
    time it may do so without end; else it would do so without end as well.
    """
    me = Holder.this()
    if me.job is None:
        return
    step = saved_step(paths)
    try:
        first = json.loads(paths.start.read_text())
        begun = me.restarts - first["restarts"] if (first["job"], first["step"]) == (me.job, step) else 0
    except (OSError, ValueError, KeyError, TypeError):  # the job's first start, or a kill's leavings
        begun = 0
    if begun < 1:
        _write_json(paths, paths.start.name, {"job": me.job, "restarts": me.restarts, "step": step})
    elif begun >= launch.attempts:
        paths.start.unlink()  # whoever starts the job again means it to be tried again
        trained = step >= run.config.training.steps
        where = "in evaluation, which starts over," if trained else f"at step {step}"
        rarer = "" if trained else ", or lower run.training.checkpoint_every"
        raise UserError(
            f"begun {begun} times {where} without getting further; its time limit (launch.slurm.timeout: "
            f"{launch.slurm.timeout}) may be too short, or it is preempted too often: raise it{rarer}."
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
