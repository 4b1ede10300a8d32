"""Monitoring of a training while it runs: strips, TensorBoard, Weights & Biases. It does not change training."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from rad_bench.config import LaunchConfig
from rad_bench.errors import UserError
from rad_bench.evaluation.evaluate import held_out, reach
from rad_bench.evaluation.interventions import roll_out
from rad_bench.evaluation.revisits import classify_task
from rad_bench.evaluation.strips import strip
from rad_bench.evaluation.tasks import Task, make_task
from rad_bench.model.experiment import Experiment
from rad_bench.model.trunk import Trunk
from rad_bench.run.tracking import Tracker
from rad_bench.store.run_folder import RunFolder
from rad_bench.training.checkpoint import Progress
from rad_bench.training.loop import LOG_EVERY
from rad_bench.training.trainer import learning_rate

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class Watch:
    """Writes strips and curves. Call it after each training step, and close it at the end."""

    def __init__(
        self, experiment: Experiment, folder: RunFolder, launch: LaunchConfig, tracker: Tracker | None = None
    ) -> None:
        self.experiment, self.run, self.folder = experiment, experiment.config, folder
        self.strip_every, self.tensorboard = launch.strip_every, launch.tensorboard
        self.writer: SummaryWriter | None = None
        self.tracker = tracker
        if self.tensorboard:
            check_tensorboard()

    def __call__(self, progress: Progress, average: Trunk) -> None:
        """Write curves with every line of the log, and a strip every `launch.strip_every` steps."""
        step = progress.step
        if step % LOG_EVERY == 0 or step == self.run.training.steps:
            values = {
                "loss": progress.loss_last, "learning rate": learning_rate(self.run.training, step - 1),
                "steps a second": step / progress.seconds if progress.seconds else math.nan,
            }  # fmt: skip
            for name, value in values.items() if self.tensorboard else ():
                self._writer(step).add_scalar(name, value, step)
            if self.tracker is not None:
                self.tracker.curves(step, values)
        if self.strip_every and step % self.strip_every == 0:
            image = strip(self._task.truth[0, self._task.context :], self._generated(average))
            target = self.folder.strips / f"training-{step:06d}.png"
            self.folder.replace(target, lambda file: image.save(file, "PNG"))
            if self.tensorboard:
                self._writer(step).add_image("truth above, generated below", np.asarray(image), step, dataformats="HWC")
            if self.tracker is not None:
                self.tracker.strip(step, image)

    def close(self) -> None:
        """Flush TensorBoard's files."""
        if self.writer is not None:
            self.writer.close()

    def _writer(self, step: int) -> SummaryWriter:
        if self.writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # TensorBoard discards what a lost attempt wrote after its last checkpoint.
            self.writer = SummaryWriter(str(self.folder.path / "tensorboard"), purge_step=step)
        return self.writer

    @functools.cached_property
    def _task(self) -> Task:
        """The first task, on its one episode with most revisits. The choice depends on the true frames only."""
        config = self.run.evaluation
        dataset = self.experiment.dataset
        task = make_task(config.tasks[0], held_out(self.run, dataset), config, self.run.trunk.frames_per_step)
        kinds, _ = classify_task(task, reach(self.run), dataset.has_poses, dataset.same_view)
        episode = int((kinds == "revisit").sum(1).argmax())
        tensors = {
            field.name: getattr(task, field.name)[episode : episode + 1]
            for field in dataclasses.fields(task)
            if isinstance(getattr(task, field.name), Tensor)
        }
        return dataclasses.replace(task, **tensors)

    def _generated(self, average: Trunk) -> Tensor:
        """Generate the frames, uint8 [H, 3, h, w]. Global generators and the trunk's mode do not change."""
        was_training = average.training
        average.eval()
        model, device = dataclasses.replace(self.experiment, trunk=average), self.experiment.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            frames = roll_out(model, self._task, only={"keep": [0]}).frames["keep"]
        average.train(was_training)
        return frames[0]


def check_tensorboard() -> None:
    """Raise `UserError` if TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"launch.tensorboard: needs the package tensorboard ({error}): pip install 'rad-bench[tensorboard]'."
        ) from None
