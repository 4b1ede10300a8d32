"""FVD (Unterthiner et al. 2018, arXiv 1812.01717): how far generated clips are from true ones, as distributions.

Clips become the logits of I3D, a Gaussian is fitted to the features of either set, and FVD is the Frechet distance of
the two Gaussians. It asks whether videos look and move like true ones, not whether they are the right ones: a memory
that is wrong, but sharp, has a low FVD. It says nothing of memory, and goes beside the scores of frames, not before.

Features of a clip depend on nothing but the clip, so they are kept in the cache: the truth's serve all runs of a sweep,
and an evaluation that was killed finds its own. Functions import torch when called, because the report reads only the
definition.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rad_bench.evaluation.weights import fetched_path, tensors_sha256
from rad_bench.store.result import VideoDistance

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

NETWORK = "i3d"
NETWORK_SHA256 = "f4a6658ec720e577a95fbbe3c785c8a16e82821951fb36a0d593a9c52df56876"  # of its tensors: `tensors_sha256`
FEATURES = 400
LEAST_CLIPS = 128  # in each set; FVD of fewer is absent
GENERATED = "generated"  # name of a run's own score, beside those of the controls

Features = NDArray[np.float64]


def fvd_definition(frames: int) -> str:
    """Return the definition of FVD over clips of so many frames, for the metric card."""
    return (
        "Frechet distance of Gaussians fitted to the features of generated and of true clips, as many of either, "
        "covariance with n - 1; clips: what is generated of each episode under `keep`, without its context, cut from "
        f"its first frame on into clips of {frames} frames, the rest left out, and the truth of the same frames; "
        "resized to 224 x 224 (bilinear, half-pixel centres, no antialiasing), RGB in [-1, 1]; features: "
        f"{FEATURES} logits of I3D (Kinetics-400, RGB), mean over time; SHA-256 of its tensors {NETWORK_SHA256[:8]}; "
        f"at least {LEAST_CLIPS} clips; few clips raise it, and those of up to {FEATURES} have singular covariances, "
        "so that only equal numbers of clips compare"
    )


@functools.cache
def fvd_unavailable() -> str | None:
    """Return why FVD cannot be computed here, or None if it can."""
    tensors = _tensors()
    return tensors if isinstance(tensors, str) else None


def frechet_distance(x_ND: Features, y_ND: Features) -> float:
    """Return the squared Frechet distance of the Gaussians fitted to two sets of features, [N, D] and [M, D].

    With covariances S = A A' and T = B B', the trace of (S T)^(1/2) is the sum of the singular values of A' B. So no
    square root of a matrix is needed, and singular covariances do no harm. A and B come from QR decompositions.
    """
    (mean_x, factor_x), (mean_y, factor_y) = (_gaussian(features) for features in (x_ND, y_ND))
    overlap = np.linalg.svd(factor_x @ factor_y.T, compute_uv=False).sum()
    spread = np.square(factor_x).sum() + np.square(factor_y).sum()
    distance = np.square(mean_x - mean_y).sum() + spread - 2 * overlap
    return max(float(distance), 0.0)  # rounding


def _gaussian(features_ND: Features) -> tuple[Features, Features]:
    """Return the mean [D], and a factor A' [K, D] of the covariance A A'."""
    mean = features_ND.mean(0)
    factor: Features = np.linalg.qr(features_ND - mean, mode="r") / np.sqrt(len(features_ND) - 1)
    return mean, factor


def score_fvd(videos: Mapping[str, Tensor], truth: Tensor, frames: int, device: torch.device) -> VideoDistance:
    """Return the FVD of each set of videos against the truth, uint8 [B, H, 3, h, w], over clips of `frames` frames."""
    clips = len(truth) * (truth.shape[1] // frames)
    size: dict[str, Any] = {"clips": clips, "frames": frames, "height": truth.shape[-2], "width": truth.shape[-1]}
    absent = fvd_absent(clips)
    if absent is not None:
        return VideoDistance(**size, absent=absent)
    true = clip_features(truth, frames, device)
    scores = {
        name: frechet_distance(clip_features(own.expand_as(truth), frames, device), true)
        for name, own in videos.items()
    }
    even, odd = (true.reshape(len(truth), -1, FEATURES)[half::2].reshape(-1, FEATURES) for half in (0, 1))
    return VideoDistance(**size, scores=scores, halves=frechet_distance(even, odd))


def fvd_absent(clips: int) -> str | None:
    """Return why there is no FVD of so many clips here, or None if there is."""
    if clips < LEAST_CLIPS:
        return f"{clips} clips, and fewer than {LEAST_CLIPS} say nothing; evaluate more episodes or frames"
    return fvd_unavailable()


def clip_features(videos: Tensor, frames: int, device: torch.device) -> Features:
    """Return the features of all clips of `frames` frames in uint8 videos [B, H, 3, h, w]: [B * (H // frames), 400].

    The features of a video's clips are kept in the cache, under a hash of all that decides them.
    """
    import torch

    from rad_bench.data.index import cache_folder
    from rad_bench.store.atomic import write_atomically
    from rad_bench.training.device import device_name

    of = f"{fvd_definition(frames)} {tuple(videos.shape[1:])} {device_name(device)} {torch.get_num_threads()}"
    features = []
    for video in videos:
        digest = hashlib.sha256(of.encode() + video.contiguous().numpy().tobytes()).hexdigest()
        path = cache_folder() / "fvd" / f"{digest[:32]}.npy"
        kept = _read(path, len(video) // frames)
        if kept is None:
            clips = video[: len(video) // frames * frames].unflatten(0, (-1, frames))
            kept = torch.stack([logits(clip, device) for clip in clips]).numpy()  # one by one: no clip changes another
            with contextlib.suppress(OSError):  # without a cache, the next run is slower
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(path, lambda file, kept=kept: np.save(file, kept))  # type: ignore[misc]
        features.append(kept)
    return np.concatenate(features).astype(np.float64)


def _read(path: Path, clips: int) -> NDArray[np.float32] | None:
    try:
        kept: NDArray[np.float32] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):  # none, or a damaged one
        return None
    return kept if kept.shape == (clips, FEATURES) else None


def logits(clip: Tensor, device: torch.device) -> Tensor:
    """Return the features of a clip, uint8 [T, 3, h, w] -> [400], on the CPU."""
    import torch
    import torch.nn.functional as F

    from rad_bench.evaluation.i3d import SIZE

    with torch.no_grad():
        frames = F.interpolate(clip.to(device).float() / 255, (SIZE, SIZE), mode="bilinear", align_corners=False)
        result: Tensor = _network(device)((frames * 2 - 1).transpose(0, 1)[None])[0].cpu()
    return result


@functools.cache
def _network(device: torch.device) -> nn.Module:
    from rad_bench.evaluation.i3d import i3d

    tensors = _tensors()
    assert not isinstance(tensors, str)
    network = i3d()
    network.load_state_dict(tensors)
    return network.to(device)


def _tensors() -> dict[str, Tensor] | str:
    """Return the verified tensors of the network, or why there are none."""
    from safetensors.torch import load_file

    path = fetched_path(NETWORK)
    if not os.path.isfile(path):  # unlike Path.is_file, it accepts a home that must not be read
        return "weights missing: `rad-bench weights fvd` fetches them"
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except Exception as error:  # whatever is raised for a file that is not what its name says
        return f"weights unverified: {path} cannot be read ({type(error).__name__})"
    digest = tensors_sha256(tensors)
    if digest != NETWORK_SHA256:
        return f"weights unverified: SHA-256 of the tensors in {path} is {digest}, not {NETWORK_SHA256}"
    return tensors
