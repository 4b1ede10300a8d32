"""Train an autoencoder and score its ceiling: how well held-out frames come back from their latents."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save

from rad_bench.data.recordings import Recordings
from rad_bench.errors import UserError, unwritten
from rad_bench.evaluation.evaluate import encode_and_decode
from rad_bench.evaluation.metrics import METRICS, metric_card
from rad_bench.evaluation.scoring import frame_metrics
from rad_bench.model.autoencoder import FACTOR, GROUPS, RECORD, WEIGHTS, Autoencoder, read_record
from rad_bench.model.codec import Conv
from rad_bench.run.environment import commit
from rad_bench.store.atomic import write_atomically
from rad_bench.training.autoencoder import CHECKPOINT, Settings, claim, spread, train_autoencoder
from rad_bench.training.device import device_name

SCORED = 512  # held-out frames, about


def make_autoencoder(
    data: Recordings, settings: Settings, out: Path, device: torch.device, report: Callable[[int, float], None]
) -> dict[str, float]:
    """Finish the autoencoder of a folder, and return the scores of its ceiling. Does nothing if it is finished."""
    height, width = data.frame_shape[1:]
    if height % FACTOR or width % FACTOR:
        raise UserError(
            f"frames of {height} x {width} pixels have sides that are not multiples of {FACTOR}; give --size."
        )
    if settings.width % GROUPS:
        raise UserError(f"--width {settings.width}: must be a multiple of {GROUPS}.")
    claim(out, settings, data.identity)
    with contextlib.suppress(UserError):
        if ceiling := read_record(out)["ceiling"]:
            return dict(ceiling)
    model = train_autoencoder(data, settings, out, device, report)
    try:
        write_atomically(out / WEIGHTS, save({name: value.cpu() for name, value in model.state_dict().items()}))
        record = {**asdict(settings), **_provenance(data, model, device), "ceiling": {}}
        _write(out, record)  # a codec reads it
        ceiling = score_ceiling(data, out, device)
        _write(out, {**record, "ceiling": ceiling})
        (out / CHECKPOINT).unlink(missing_ok=True)
    except OSError as error:
        raise unwritten(error, out) from None
    return ceiling


def score_ceiling(data: Recordings, folder: Path, device: torch.device) -> dict[str, float]:
    """Return the mean of each metric over held-out frames that were encoded and decoded."""
    codec = Conv(folder, data.frame_shape)
    each = math.ceil(SCORED / len(data.held_out_items))
    videos = [spread(data, item, each)[None] for item in data.held_out_items]
    scores = [frame_metrics(encode_and_decode(codec, video, device), video, device) for video in videos]
    return {
        name: float(torch.cat([torch.from_numpy(score[name]) for score in scores]).double().mean())
        for name in scores[0]
        if METRICS[name].reported
    }


def _provenance(data: Recordings, model: Autoencoder, device: torch.device) -> dict[str, object]:
    return {
        "data": {"kind": data.source.kind, "identity": data.identity, "training_recordings": len(data.training)},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "device": device_name(device),
        "commit": commit(),
        "metrics": metric_card(),
    }


def _write(out: Path, record: dict[str, object]) -> None:
    write_atomically(out / RECORD, (json.dumps(record, indent=1) + "\n").encode())
