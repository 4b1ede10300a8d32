"""What the tests of models from outside share: small tasks, frames for them, and the frames of a trained run."""

import json

import numpy as np
from PIL import Image

from rad_bench.evaluation.evaluate import answer_keys
from rad_bench.evaluation.interventions import roll_out
from rad_bench.exchange.folder import read_index, read_keys
from tests.sweep.tiny import TINY, run_here

QUESTIONS = {"continuation": 8, "retrieval": 8}  # generated frames in `TINY`


def tasks(folder, text=TINY, *options):
    """Write the tasks of a sweep and return their folder."""
    (folder / "asked.yaml").write_text(text, encoding="utf-8")
    run_here("tasks", "asked.yaml", "--out", "tasks", *options, cwd=folder)
    return folder / "tasks"


def truth(folder):
    """Return the true frames of each task, uint8 [B, H, height, width, 3]."""
    _, keys = read_keys(folder, read_index(folder))
    return {key.task.name: key.truth.permute(0, 1, 3, 4, 2).numpy() for key in keys}


def write(folder, frames, form="npz"):
    """Write the frames of each task, uint8 [B, H, height, width, 3], as arrays or as pictures; return the folder."""
    for task, videos in frames.items():
        for episode, video in enumerate(videos):
            place = folder / task / f"{episode:03d}"
            (place if form == "png" else place.parent).mkdir(parents=True, exist_ok=True)
            if form == "npz":
                np.savez(f"{place}.npz", frames=video)
            else:
                for number, picture in enumerate(video):
                    Image.fromarray(picture).save(place / f"frame_{number}.png")
    return folder


def rollouts(trained):
    """Return what a trained run generates, by intervention and task, as `write` takes it."""
    by_intervention = {}
    for key in answer_keys(trained.config, trained.dataset, trained.codec, trained.device):
        for intervention, frames in roll_out(trained, key.task).frames.items():
            videos = frames.permute(0, 1, 3, 4, 2).numpy()
            by_intervention.setdefault(intervention, {})[key.task.name] = videos
    return by_intervention


def record(folder):
    """Return the only result.json below a folder of scored models."""
    (path,) = folder.glob("runs/*/result.json")
    return json.loads(path.read_text())
