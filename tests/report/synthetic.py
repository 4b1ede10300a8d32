"""A sweep's folder written by hand, whose right answers are known."""

import json
import re

import numpy as np
import pandas as pd
import yaml

CARD = {"psnr": "as defined", "ssim": "as defined", "lpips": "unavailable: weights missing", "card": "c0ffee"}
BASE = {"none": 12.0, "lstm": 18.0, "mamba2": 21.0, "copy-last": 11.0}
MEMORYLESS = ("none", "feedforward")
SWAP_LOSS = {"none": 0.0, "lstm": 6.0, "mamba2": 0.0}


def write_sweep(folder, seeds=(0, 1, 2), base=BASE, swap_loss=SWAP_LOSS, episodes=8, horizon=12, failed=()):
    """Write frames.parquet, sweep.yaml and the runs' files; `failed` names planned runs that left only a traceback."""
    tables, planned = [], list(failed)
    for block in base:
        for seed in seeds:
            run = re.sub(r"\W+", "-", block) + f"-seed{seed}"
            tables.append(_frames(run if block != "copy-last" else f"none-seed{seed}", block, seed, base, swap_loss,
                                  episodes, horizon))  # fmt: skip
            if block == "copy-last":
                continue
            planned.append(run)
            place = folder / "runs" / run
            place.mkdir(parents=True)
            (place / "result.json").write_text(json.dumps(_result(run, block, seed)))
            lines = [{"phase": "training", "step": s, "steps": 30, "loss": 1 / s} for s in (10, 20, 30)]
            (place / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for run in failed:
        (folder / "runs" / run).mkdir(parents=True)
        (folder / "runs" / run / "failure.txt").write_text("Traceback\nRuntimeError: <b>no such luck</b>\n")
    pd.concat(tables, ignore_index=True).to_parquet(folder / "frames.parquet")
    (folder / "sweep.yaml").write_text(yaml.safe_dump({"name": "by hand", "planned": planned}))
    return folder


def _frames(run, block, seed, base, swap_loss, episodes, horizon):
    rng = np.random.default_rng([seed, *block.encode()])
    rows = []
    for task in ("continuation", "retrieval"):
        for intervention in ("keep",) if block == "copy-last" else ("keep", "reset", "swap"):
            loss = swap_loss[block] if intervention == "swap" else 0.0
            for episode in range(episodes):
                for frame in range(horizon):
                    psnr = base[block] - loss + rng.normal(0, 0.3)
                    kind = ("recent", "revisit", "partial", "novel")[frame % 4]
                    gap = {"recent": 2.0, "revisit": 7.0 + frame, "partial": 5.0, "novel": np.nan}[kind]
                    rows.append((run, block, seed, task, intervention, episode, frame, kind, gap, psnr,
                                 10 ** (-psnr / 10), 0.5, CARD["card"], *_self(block, frame)))  # fmt: skip
    columns = ["run", "block", "seed", "task", "intervention", "episode", "frame", "kind", "gap"]
    columns += ["psnr", "mse", "ssim", "card", "self_revisit", "self_other", "self_neighbour"]
    return pd.DataFrame(rows, columns=columns)


def _self(block, frame):
    """Every second frame closes a revisit pair: lstm is half as consistent as its neighbours, the others not at all."""
    return (0.5 if block == "lstm" else 0.3, 0.3, 0.7) if frame % 2 else (np.nan, np.nan, 0.7)


def _result(run, block, seed):
    return {
        "run": run, "block": block, "seed": seed,
        "parameters": {"memory": 0 if block == "none" else 1000, "trunk": 5000},
        "match": {"by": "none", "budget": None, "residual": None},
        "flops_per_frame": {"memory": 0 if block == "none" else 200, "trunk": 900},
        "state_bytes": {"1": 0, "100": 0, "20": 0} if block in MEMORYLESS else {"1": 512, "100": 51_200, "20": 10_240},
        "memory": {"name": block, "options": {}},
        "training": {"steps": 30, "seconds": 0.3, "seconds_per_step": 0.01, "loss_first": 0.1, "loss_last": 0.03},
        "rollout": {"seconds_per_frame_start": 0.001, "seconds_per_frame_end": 0.001, "videos": 8},
        "peak_memory_bytes": 10**8, "trunk_hash": f"hash{seed}", "metrics": CARD, "reach": 6, "episodes": 8,
        "data": {"name": "rooms", "identity": "d"}, "device": "cpu", "threads": 1, "commit": "abcdef0",
        "science_version": 1, "strips": {},
    }  # fmt: skip


def write_curves(folder, shifts):
    """Write curves.parquet: `shifts` maps a step to the dB by which a block is above its headline there, 0 if absent.

    The last step is the end of training. Blocks that no step names have no curve.
    """
    frames = pd.read_parquet(folder / "frames.parquet").assign(truth=0)
    blocks = {block for own in shifts.values() for block in own}
    kept = frames[(frames["intervention"] == "keep") & frames["block"].isin(blocks)]
    tables = [
        kept.assign(step=step, psnr=kept["psnr"] + kept["block"].map(own).fillna(0.0)) for step, own in shifts.items()
    ]
    curves = pd.concat(tables, ignore_index=True)
    columns = ["run", "block", "seed", "step", "task", "episode", "frame", "kind", "truth", "psnr"]
    curves[columns].to_parquet(folder / "curves.parquet")
