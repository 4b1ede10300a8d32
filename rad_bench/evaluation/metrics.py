"""Frame metrics on [0, 1] RGB. The table `METRICS` defines them for scoring, the metric card and the report.

The report reads the table and should not wait for torch, so each function imports torch when it is called.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rad_bench.evaluation.fvd import fvd_definition, fvd_unavailable
from rad_bench.evaluation.perceptual import LPIPS_DEFINITION, LPIPS_SMALLEST, lpips, lpips_unavailable

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SIGMA, RADIUS = 1.5, 5  # of SSIM's Gaussian window; scikit-image truncates at 3.5 sigma
SSIM_SMALLEST = 2 * RADIUS + 1  # pixels
K1, K2 = 0.01, 0.03
AT_A_TIME = {"cpu": 2**15}  # pixels: intermediate results stay in a CPU's cache
AT_A_TIME_ELSEWHERE = 2**22
SMALLEST_MSE = 1 / 255**2  # one 8-bit grey level; identical frames would have an infinite PSNR
DECODED = "_decoded"  # suffix of columns that score against the encoded and decoded truth


@dataclass(frozen=True, kw_only=True)
class Score:
    """A column of scores of generated frames, and how the report formats it."""

    definition: str  # for the metric card; scores can be compared if its hash is the same
    label: str
    unit: str
    digits: int  # after the point
    higher_is_better: bool
    reported: bool = True  # False: only stored in frames.parquet, for derived scores

    @property
    def title(self) -> str:
        """Return the label with the unit, for a column or an axis."""
        return f"{self.label}, {self.unit}" if self.unit else self.label


@dataclass(frozen=True, kw_only=True)
class Metric(Score):
    """A score of a frame's pixels against the truth's."""

    score: Callable[[Tensor, Tensor], Tensor]  # frames and their truth, [N, C, H, W] in [0, 1] -> [N]
    smallest: int = 1  # side of the smallest frame, in pixels
    unavailable: Callable[[], str | None] = lambda: None  # why it cannot be computed here


def few_at_a_time(frames: Tensor, truth: Tensor, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield uint8 frames [N, C, H, W] and their truth, in [0, 1] on `device`, in chunks of the fastest size."""
    count = max(1, AT_A_TIME.get(device.type, AT_A_TIME_ELSEWHERE) // (frames.shape[-1] * frames.shape[-2]))
    for x, y in zip(frames.split(count), truth.split(count), strict=True):
        yield x.to(device).float() / 255, y.to(device).float() / 255


def mse(frames: Tensor, truth: Tensor) -> Tensor:
    """Return the mean squared error of each frame: [..., C, H, W] in [0, 1] -> [...], float64."""
    import torch

    return (frames - truth).square().mean((-3, -2, -1), dtype=torch.float64)


def psnr(frames: Tensor, truth: Tensor) -> Tensor:
    """Return the PSNR of each frame in dB: [..., C, H, W] in [0, 1] -> [...], float64."""
    return -10 * mse(frames, truth).clamp(min=SMALLEST_MSE).log10()


def ssim(frames: Tensor, truth: Tensor) -> Tensor:
    """Return the SSIM of each frame, as scikit-image defines it: [..., C, H, W] in [0, 1] -> [...], float64.

    The Gaussian window is applied as two banded matrix products, over the region where it fits. Subtracting each
    frame's mean first keeps the fp32 error of variances below 1e-5.
    """
    import torch

    middle = frames.mean((-2, -1), keepdim=True)
    x, y = frames - middle, truth - middle
    rows, columns = (_window(size, x.device) for size in x.shape[-2:])
    images = torch.stack([x, y, x * x + y * y, x * y])
    blurred = (images @ columns.T).transpose(-1, -2) @ rows.T
    mean_x, mean_y, squares, product = blurred
    variances = squares - mean_x * mean_x - mean_y * mean_y
    covariance = product - mean_x * mean_y
    mean_x, mean_y = mean_x + middle, mean_y + middle
    c1, c2 = K1**2, K2**2
    top = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    bottom = (mean_x * mean_x + mean_y * mean_y + c1) * (variances + c2)
    return (top / bottom).mean((-3, -2, -1)).double()


@functools.cache
def _window(size: int, device: torch.device) -> Tensor:
    """Return the Gaussian filter as a matrix [size - 2 * RADIUS, size]."""
    import torch

    if size < SSIM_SMALLEST:
        raise ValueError(f"SSIM needs frames of at least {SSIM_SMALLEST} pixels, got {size}")
    taps = torch.tensor([math.exp(-0.5 * (i / SIGMA) ** 2) for i in range(-RADIUS, RADIUS + 1)], dtype=torch.float64)
    matrix = torch.zeros(size - 2 * RADIUS, size, dtype=torch.float64)
    for row in range(len(matrix)):
        matrix[row, row : row + len(taps)] = taps / taps.sum()
    return matrix.float().to(device)


METRICS = {
    "psnr": Metric(
        score=psnr,
        definition="10 log10(1 / MSE) of a frame, RGB in [0, 1] clamped, data range 1.0, MSE at least one 8-bit grey "
        "level squared (48.13 dB); mean over frames, then over episodes",
        label="PSNR", unit="dB", digits=2, higher_is_better=True,
    ),
    "mse": Metric(
        score=mse,
        definition="mean squared error of a frame; the pooled PSNR is 10 log10(1 / mean MSE)",
        label="MSE", unit="", digits=4, higher_is_better=False, reported=False,
    ),
    "ssim": Metric(
        score=ssim,
        definition="scikit-image structural_similarity of a frame: Gaussian weights, sigma 1.5, no sample covariance, "
        "data range 1.0, mean over channels; frames smaller than 11 pixels have none",
        label="SSIM", unit="", digits=3, higher_is_better=True, smallest=SSIM_SMALLEST,
    ),
    "lpips": Metric(
        score=lpips,
        definition=LPIPS_DEFINITION,
        label="LPIPS", unit="", digits=3, higher_is_better=False, smallest=LPIPS_SMALLEST,
        unavailable=lpips_unavailable,
    ),
}  # fmt: skip
RECALL = Score(
    definition="share of right colours among the surfaces of a frame that the true context has shown, that were then "
    "out of sight for longer than attention reaches, and that at least 4 columns meet; read off the generated frame: "
    "mean over these columns in the rows just above the horizon, nearest colour of the palette in that wall's shade; "
    "bits: surfaces asked for in an episode, times the mutual information of a symmetric channel with as many symbols "
    "as colours at that share, negative below chance",
    label="recall of colours", unit="", digits=2, higher_is_better=True,
)  # fmt: skip

FURTHER_DEFINITIONS = {  # what the card defines in addition to the scores of single frames
    "revisit": "a frame of whose rays at least 90 % meet surfaces met in the true context, and whose gap is beyond "
    "attention's reach; gap: median over rays of the longest stretch since then without that surface; without a map a "
    "frame is one surface, met where a pose lies within data.same_place and data.same_heading of its own; in the "
    "embedded world all that shows one colour is one surface",
    "nmr": "SSIM of revisit pairs within a rollout, less that of pairs of different views as far apart, over the same "
    "for neighbouring frames of the same view; a revisit pair shows the same view, which was out of sight for more "
    "than attention's reach in between; views same from 90 %, different and out of sight to 10 % of shared surfaces; "
    "without a map within data.same_place and data.same_heading, different from three times as far on",
    "probe": "R^2 of ridge regression from the memory's state after a context to what is hidden, over what was shown",
}


def metric_card(fvd: int = 0) -> dict[str, str]:
    """Return the definition of each metric, or why it is unavailable, and under `card` the hash of them all.

    `fvd` is the length of the clips of FVD, which is not on the card if it is 0.
    """
    scores = {}
    for name, metric in METRICS.items():
        scores[name] = _unless(metric.unavailable(), metric.definition)
    if fvd:
        scores["fvd"] = _unless(fvd_unavailable(), fvd_definition(fvd))
    definitions = {**scores, "recall": RECALL.definition, **FURTHER_DEFINITIONS}
    digest = hashlib.sha256(json.dumps(definitions, sort_keys=True).encode()).hexdigest()[:16]
    return {**definitions, "card": digest}


def _unless(unavailable: str | None, definition: str) -> str:
    return definition if unavailable is None else f"unavailable: {unavailable.split(':')[0]}"


def score_columns() -> dict[str, Score]:
    """Return the columns of scores that frames.parquet may hold, also those against decoded truth."""
    decoded = {
        name + DECODED: replace(metric, label=f"{metric.label} against decoded truth")
        for name, metric in METRICS.items()
    }
    return {**METRICS, **decoded, "recall": RECALL}
