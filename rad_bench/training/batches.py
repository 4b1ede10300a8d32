"""The clips of each training step, a function of the config and the step's number."""

from __future__ import annotations

import contextlib
import itertools
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from rad_bench.config import RunConfig
from rad_bench.data import Dataset, Episodes
from rad_bench.data.returns import turned_back, turning_frames
from rad_bench.model.experiment import Experiment


def training_clips(
    run: RunConfig, dataset: Dataset, step: int, rows: slice = slice(None), with_surfaces: bool = False
) -> Episodes:
    """Return rows of the clips of a training step, some of which turn back: a function of the config and the step."""
    config = run.training
    clips = dataset.training_batch(run.seed, step, config.batch, config.frames, rows, with_surfaces)
    if not config.return_share:
        return clips
    return turned_back(clips, turning_frames(config.return_share, run.seed, step, config.batch, config.frames)[rows])


@contextlib.contextmanager
def training_batches(experiment: Experiment, first: int, rows: slice, loaders: int) -> Iterator[Iterator[Episodes]]:
    """Yield an iterator over the given rows of the batches from step `first` on, prepared by `loaders` threads.

    A batch is a function of its step, so it does not depend on the thread.
    """
    run, config = experiment.config, experiment.config.training

    def batch(step: int) -> Episodes:
        return training_clips(run, experiment.dataset, step, rows)

    if not loaders:
        yield map(batch, itertools.count(first))
        return
    with ThreadPoolExecutor(loaders) as pool:
        ahead = deque(pool.submit(batch, step) for step in range(first, min(first + 2 * loaders, config.steps)))

        def prepared() -> Iterator[Episodes]:
            for step in itertools.count(first + len(ahead)):
                episodes = ahead.popleft().result()
                if step < config.steps:
                    ahead.append(pool.submit(batch, step))
                yield episodes

        try:
            yield prepared()
        finally:
            for future in ahead:
                future.cancel()
