"""Weights & Biases: a run's config, curves, strips and scores, for those who keep their runs there.

The id of the run there is its key, so that a resumed run goes on in the same place. wandb's own variables apply, such
as WANDB_PROJECT, and WANDB_MODE=offline for machines without network. Its files are in the sweep's folder `wandb`, not
in the run's: they hold links to elsewhere, which a run's folder must not.
"""

from __future__ import annotations

import os
from typing import Any

from PIL import Image

from rad_bench.errors import UserError
from rad_bench.evaluation.controls import CONTROLS
from rad_bench.evaluation.metrics import score_columns
from rad_bench.evaluation.scoring import Scores
from rad_bench.evaluation.strips import strip
from rad_bench.store.run_folder import Run, RunFolder

PROJECT = "rad-bench"
STEP = "training step"  # the axis of the curves: a resumed run may log a step twice


class Tracker:
    """A run at Weights & Biases. Raises `UserError` if it cannot be begun."""

    def __init__(self, run: Run, folder: RunFolder) -> None:
        wandb = check_wandb()
        config = {"label": run.label, "key": run.key, **run.config.model_dump(mode="json")}
        try:
            self.run: Any = wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT), id=run.key[:32], name=run.name, group=run.label,
                config=config, dir=os.environ.get("WANDB_DIR", str(folder.path.parents[1])), resume="allow",
                settings=wandb.Settings(silent=True),
            )  # fmt: skip
        except (wandb.Error, OSError) as error:
            raise UserError(
                f"launch.wandb: the run cannot be begun there ({error}); WANDB_MODE=offline keeps it in the sweep's "
                "folder."
            ) from None
        self.run.define_metric("*", step_metric=STEP)
        self._image, self._table = wandb.Image, wandb.Table

    def curves(self, step: int, values: dict[str, float]) -> None:
        """Log values at a step of training."""
        self.run.log({STEP: step, **values})

    def strip(self, step: int, image: Image.Image) -> None:
        """Log a strip of generated frames below the truth."""
        self.run.log({STEP: step, "truth above, generated below": self._image(image)})

    def scores(self, run: Run, scores: Scores) -> None:
        """Log the table of final scores by task, intervention and class of frames, and the strips."""
        frames = scores.frames
        own = frames[~frames["block"].isin(CONTROLS)]
        columns = [name for name in score_columns() if name in own]
        means = own.groupby(["task", "intervention", "kind"], sort=False)[columns].mean().reset_index()
        logged: dict[str, Any] = {STEP: run.config.training.steps, "scores": self._table(dataframe=means)}
        for name, pictures in scores.strips.items():
            logged[f"strips/{name}"] = self._image(strip(pictures))
        self.run.log(logged)
        for row in means[(means["kind"] == "revisit")].to_dict("records"):
            for name in columns:
                self.run.summary[f"{row['task']}/{row['intervention']}/revisit {name}"] = row[name]

    def close(self) -> None:
        """Write everything that is left."""
        self.run.finish()


def check_wandb() -> Any:
    """Return the module wandb. Raises `UserError` if it is not installed."""
    try:
        import wandb
    except ImportError as error:
        raise UserError(f"launch.wandb: needs the package wandb ({error}): pip install 'rad-bench[wandb]'.") from None
    return wandb
