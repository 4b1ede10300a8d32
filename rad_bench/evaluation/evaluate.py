"""Roll a trained trunk out over every task under every intervention, and score each generated frame."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rad_bench.config import EvaluationConfig, RunConfig
from rad_bench.data import Dataset, Episodes
from rad_bench.evaluation.interventions import roll_out
from rad_bench.evaluation.scoring import Key, Scores
from rad_bench.evaluation.tasks import make_task
from rad_bench.model.codec import Codec
from rad_bench.model.experiment import Experiment


@dataclass
class Evaluation(Scores):
    """The results of an evaluation: the scores, and how long the rollouts took."""

    seconds: list[float] = field(default_factory=list)  # wall time of each step of the longest task's first batch
    videos: int = 0  # in that batch: evaluation.episodes, or evaluation.batch if that is less


def reach(run: RunConfig) -> int:
    """Return how many frames back attention alone can reach: stacked windows pass information on.

    `evaluation.reach` replaces it if given; the config checks that it is not smaller.
    """
    return run.evaluation.reach or run.trunk.reach


def held_out(run: RunConfig, dataset: Dataset) -> Episodes:
    """Return the episodes that a run is evaluated on."""
    config = run.evaluation
    return dataset.held_out(config.episodes, config.context + config.horizon, config.context)


def parts(config: EvaluationConfig) -> int:
    """Return the number of parts of an evaluation that are reported when they are done."""
    return len(config.tasks) * (len(config.interventions) + bool(config.fvd))


def answer_keys(run: RunConfig, dataset: Dataset, codec: Codec, device: torch.device) -> list[Key]:
    """Return the tasks that a run is evaluated on, with all that their scores depend on."""
    episodes = held_out(run, dataset)
    tasks = [make_task(name, episodes, run.evaluation, run.trunk.frames_per_step) for name in run.evaluation.tasks]

    def decoded(truth: Tensor) -> Tensor | None:
        return None if codec.lossless else encode_and_decode(codec, truth, device)

    return [
        Key.of(task, reach(run), dataset.has_poses, dataset.same_view, decoded(task.truth[:, task.context :]))
        for task in tasks
    ]


def evaluate(experiment: Experiment, report: Callable[[int, int], None]) -> Evaluation:
    """Evaluate the experiment's trunk by its config; `report(done, of)` is called when rollouts, or FVDs, finish."""
    run = experiment.config
    keys = answer_keys(run, experiment.dataset, experiment.codec, experiment.device)
    interventions, fvd = run.evaluation.interventions, run.evaluation.fvd
    result = Evaluation(experiment.device, run.evaluation.strips, fvd)
    done, of = 0, parts(run.evaluation)
    experiment.trunk.eval()
    for key in keys:
        result.begin(key)

        def report_rollouts(rolled_out: int, done: int = done) -> None:
            report(done + rolled_out, of)

        generated = roll_out(experiment, key.task, report_rollouts)
        for intervention in (name for name in interventions if name in generated.frames):
            result.add(key, intervention, generated.frames[intervention])
        if len(generated.seconds) > len(result.seconds):
            result.seconds, result.videos = generated.seconds, generated.videos
        done += len(interventions)
        if fvd:
            result.compare_videos(key, generated.frames["keep"])
            done += 1
            report(done, of)
    return result


@torch.no_grad()
def encode_and_decode(codec: Codec, videos: Tensor, device: torch.device) -> Tensor:
    """Encode and decode videos one by one, so that a result does not depend on the other videos."""
    return torch.stack([codec.decode(codec.encode(video.to(device))).cpu() for video in videos])
