"""The record of a run: its `Result`, made from what the steps of the run returned."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from rad_bench.config import SCIENCE_VERSION, LaunchConfig, RunConfig
from rad_bench.evaluation.evaluate import Evaluation, reach
from rad_bench.evaluation.metrics import metric_card
from rad_bench.evaluation.need import needs_of
from rad_bench.model.experiment import Experiment
from rad_bench.run.environment import commit
from rad_bench.run.outputs import strips_record
from rad_bench.run.reuse import Training, training_record
from rad_bench.store.result import (
    Counts,
    Data,
    EvaluationTime,
    Match,
    Memory,
    MetricCard,
    Parity,
    Result,
    RolloutTimes,
)
from rad_bench.store.run_folder import Run
from rad_bench.training.device import device_name

TIMED_STEPS = 5  # median time of so many steps is reported, at the start and at the end of a rollout


@dataclass(frozen=True)
class Start:
    """What is known of a run before it trains."""

    run: Run
    launch: LaunchConfig
    processes: int
    experiment: Experiment
    block: str  # identity of the memory block's code
    key: str  # of the training
    trunk_hash: str  # of the initial weights
    parity: Parity


@dataclass(frozen=True)
class Evaluated:
    """The scores of a trained run."""

    evaluation: Evaluation
    probe: dict[str, float]
    seconds: float


def make_result(start: Start, trained: Training, evaluated: Evaluated, peak_memory: int) -> Result:
    """Return the result of a run. `peak_memory` is in bytes, over training and evaluation."""
    run, experiment, evaluation = start.run, start.experiment, evaluated.evaluation
    config, plan, dataset = run.config, experiment.plan, experiment.dataset
    return Result(
        run=run.name,
        block=run.label,
        seed=config.seed,
        axes=run.axes,
        memory=Memory(name=config.memory.name, options=plan.options, identity=start.block),
        parameters=Counts(memory=plan.memory_parameters, trunk=plan.trunk_parameters),
        match=Match(by=config.match.by, budget=plan.budget, residual=plan.residual),
        flops_per_frame=Counts(memory=plan.memory_flops, trunk=plan.trunk_flops),
        state_bytes=plan.state_bytes,
        window_bytes=plan.window_bytes,
        reach=reach(config),
        training=training_record(trained, start.key),
        rollout=_rollout_times(config, evaluation),
        evaluation=EvaluationTime(seconds=evaluated.seconds),
        peak_memory_bytes=peak_memory,
        device=device_name(experiment.device),
        threads=start.launch.threads,
        processes=start.processes,
        trunk_hash=start.trunk_hash,
        metrics=MetricCard(**metric_card(config.evaluation.fvd)),
        science_version=SCIENCE_VERSION,
        commit=commit(),
        episodes=config.evaluation.episodes,
        data=Data(identity=dataset.identity, name=config.data.name, codec=experiment.codec.identity),
        strips=strips_record(evaluation),
        probe=evaluated.probe,
        parity=start.parity,
        fvd=evaluation.fvd,
        need=needs_of(config, dataset),
    )


def _rollout_times(config: RunConfig, evaluation: Evaluation) -> RolloutTimes:
    per_frame = [seconds / config.trunk.frames_per_step / evaluation.videos for seconds in evaluation.seconds]
    return RolloutTimes(
        seconds_per_frame_start=statistics.median(per_frame[:TIMED_STEPS]),
        seconds_per_frame_end=statistics.median(per_frame[-TIMED_STEPS:]),
        videos=evaluation.videos,
    )
