"""The files that scored frames leave in a run's folder."""

from __future__ import annotations

import json
from typing import Any

from rad_bench.evaluation.controls import CONTROLS
from rad_bench.evaluation.scoring import Scores
from rad_bench.evaluation.strips import shown, strip
from rad_bench.store.result import Strips
from rad_bench.store.run_folder import Run, RunFolder


def write_json(paths: RunFolder, name: str, value: Any) -> None:
    """Write a value as a file of this name."""
    text = json.dumps(value, indent=1, sort_keys=True, default=str) + "\n"
    paths.replace(paths.path / name, lambda file: file.write(text.encode()))


def write_scores(run: Run, scores: Scores, paths: RunFolder) -> None:
    """Write frames.parquet, and the strips of the episodes that are shown."""
    frames = scores.frames
    frames.insert(0, "run", paths.path.name)
    frames["block"] = frames["block"].where(frames["block"].isin(CONTROLS), run.label)
    frames["seed"] = run.config.seed
    paths.replace(paths.frames, lambda file: frames.to_parquet(file, index=False))
    for name, pictures in scores.strips.items():
        image = strip(pictures)
        paths.replace(paths.strips / f"{name}.png", lambda file, image=image: image.save(file, "PNG"))  # type: ignore[misc]


def strips_record(scores: Scores) -> dict[str, Strips]:
    """Return which episodes and frames the strips of each task show."""
    return {
        task: Strips(episodes=episodes, frames=shown(scores.horizons[task])) for task, episodes in scores.shown.items()
    }
