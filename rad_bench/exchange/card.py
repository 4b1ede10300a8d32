"""The model card of an exported model: what it is, how well it does, and how it is loaded."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from rad_bench.evaluation.controls import COPY_LAST
from rad_bench.evaluation.metrics import score_columns
from rad_bench.look.load import Trained
from rad_bench.report.intervals import difference, episode_means, estimate
from rad_bench.report.table import Table, number_text, show
from rad_bench.store.result import Result
from rad_bench.units import show_bytes


def model_card(
    trained: Trained, result: Result, frames: pd.DataFrame, config: dict[str, Any], left_out: list[str]
) -> str:
    """Return the card as Markdown, with the front matter that hubs read."""
    run = trained.config
    C, A, P = run.evaluation.context, trained.dataset.action_size, trained.dataset.pose_size
    motion = "forward, to the left, turn" + (", up, change of pitch" if P == 5 else "")
    state = max(result.state_bytes.values())
    horizon = "" if len(set(result.state_bytes.values())) == 1 else ", growing with the video"
    missing = "".join(f"\nNot in this folder: {text}.\n" for text in left_out)
    return f"""---
library_name: pytorch
tags: [video-prediction, world-model, diffusion, memory, rad-bench]
---

# {trained.name}

A recurrent diffusion transformer with the memory `{result.block}`, trained and evaluated by rad-bench
(commit {result.commit or "unknown"}) on {run.data.name} (identity {result.data.identity}), seed {run.seed}.

| | |
|---|---|
| parameters | {result.parameters.trunk:,} of the trunk, {result.parameters.memory:,} of the memory |
| state of the memory | {show_bytes(state) if state else "none"} a video{horizon if state else ""} |
| training | {run.training.steps:,} steps of {run.training.batch} clips of {run.training.frames} frames |
| frames | {" x ".join(map(str, trained.dataset.frame_shape[1:]))} pixels; motion: {run.trunk.motion} |
| reach of attention | {result.reach} frames |

{_numbers(frames, result)}
Over {result.episodes} held-out episodes with {C} true frames given; intervals are a bootstrap over these episodes (one
training). A revisit is a frame whose view was shown in the context and was then out of sight for longer than attention
reaches; swap: the memory is replaced by that of another episode. Metric card {result.metrics.card}.

## Use

`pip install torch einops pydantic safetensors`, and in this folder:

```python
from load import Model

model = Model()
# context: uint8 [B, C, 3, height, width]; actions [B, C + H, {A}]; egomotion [B, C + H, {P}]: {motion}
frames = model.generate(context, actions, egomotion)  # uint8 [B, H, 3, height, width]
```

The sources in `rad_model` are of rad-bench (Apache-2.0).
{missing}"""


def _numbers(frames: pd.DataFrame, result: Result) -> str:
    """Return the table of scores on revisits, a row a task."""
    columns = {name: score for name, score in score_columns().items() if score.reported and name in frames}
    own = frames[frames["block"] == result.block]
    cells = []
    for task in dict.fromkeys(frames["task"]):
        kept, swapped, still = (
            _revisits(frames, task, block, how)
            for block, how in ((result.block, "keep"), (result.block, "swap"), (COPY_LAST, "keep"))
        )
        line = [task, *(show(estimate(episode_means(kept, name)), s.digits) for name, s in columns.items())]
        loss = difference(episode_means(kept), episode_means(swapped)) if len(swapped) else None
        every = own[(own["task"] == task) & (own["intervention"] == "keep")]
        line += [show(loss), number_text(estimate(episode_means(still)).mean if len(still) else np.nan)]
        cells.append([*line, number_text(estimate(episode_means(every)).mean)])
    header = ["task", *(f"revisit {score.title}" for score in columns.values())]
    header += ["lost by swap, dB", "last true frame repeated, dB", "PSNR of all frames, dB"]
    return Table("numbers", "Scores on revisits", header, cells).without_empty_columns().markdown()


def _revisits(frames: pd.DataFrame, task: str, block: str, intervention: str) -> pd.DataFrame:
    own = (frames["task"] == task) & (frames["block"] == block) & (frames["intervention"] == intervention)
    return frames[own & (frames["kind"] == "revisit")]
