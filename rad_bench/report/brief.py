"""The report of a sweep, from its frames.parquet and its runs' results: tables, plots and one offline page."""

from __future__ import annotations

import base64
import html
import io
import json
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from scipy import stats

matplotlib.use("Agg")
from matplotlib import pyplot as plt

COLOURS = ["#000000", "#E69F00", "#56B4E9", "#009E73", "#D55E00", "#CC79A7", "#0072B2", "#999999"]
ORDER = ["none", "lstm", "mamba2", "ttt", "attention", "copy-last"]
GAPS = [0, 6, 9, 12, 16, 20, 25, 30, 40, 1000]


def seed_means(frames: pd.DataFrame, by: list[str], column: str = "psnr") -> pd.DataFrame:
    """Mean over frames within an episode, then over episodes, of each block and seed."""
    keys = ["block", "seed", *by]
    return (
        frames.groupby([*keys, "episode"], as_index=False)[column].mean().groupby(keys, as_index=False)[column].mean()
    )


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """Mean and 95 % Student t interval over seeds; NaN bounds for a single seed."""
    mean, n = float(np.mean(values)), len(values)
    if n < 2:
        return mean, float("nan"), float("nan")
    half = float(stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n))
    return mean, mean - half, mean + half


def summarise(frames: pd.DataFrame, results: list[dict[str, Any]]) -> pd.DataFrame:
    """One row per block and task: revisit PSNR, what interventions take away, and cost."""
    revisits = frames[frames["kind"] == "revisit"]
    means = seed_means(revisits, ["task", "intervention"])
    rows = []
    for (block, task), part in means.groupby(["block", "task"], sort=False):
        wide = part.pivot(index="seed", columns="intervention", values="psnr")
        mean, low, high = interval(wide["keep"].to_numpy())
        row: dict[str, Any] = {"block": block, "task": task, "seeds": len(wide)}
        row |= {"revisit_psnr": mean, "revisit_psnr_low": low, "revisit_psnr_high": high}
        for other in ("swap", "reset"):
            if other in wide:
                drop = interval((wide["keep"] - wide[other]).to_numpy())
                row |= dict(zip((f"{other}_drop", f"{other}_drop_low", f"{other}_drop_high"), drop, strict=True))
        own = [r for r in results if r["block"] == block]
        if own:
            row["memory_parameters"] = own[0]["parameters"]["memory"]
            row["state_bytes_end"] = list(own[0]["state_bytes"].values())[-1]
            row["seconds_per_step"] = np.mean([r["training"]["seconds_per_step"] for r in own])
            row["seconds_per_frame_start"] = np.mean([r["rollout"]["seconds_per_frame_start"] for r in own])
            row["seconds_per_frame_end"] = np.mean([r["rollout"]["seconds_per_frame_end"] for r in own])
        rows.append(row)
    table = pd.DataFrame(rows)
    rank = {name: place for place, name in enumerate(ORDER)}
    return table.sort_values(["task", "block"], key=lambda c: c.map(lambda v: (rank.get(v, 99), str(v)))).reset_index(
        drop=True
    )


def write_report(sweep_folder: Path) -> Path:
    """Write summary.csv and report/ of a sweep; return the page."""
    frames = pd.read_parquet(sweep_folder / "frames.parquet")
    results = [json.loads(p.read_text()) for p in sorted((sweep_folder / "runs").glob("*/result.json"))]
    summary = summarise(frames, results)
    summary.to_csv(sweep_folder / "summary.csv", index=False)
    folder = sweep_folder / "report"
    for part in ("tables", "plots"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    rounded = summary.round(3)
    (folder / "tables" / "summary.md").write_text(_markdown(rounded))
    (folder / "tables" / "summary.tex").write_text(rounded.to_latex(index=False, escape=True))
    figures = []
    for task in frames["task"].unique():
        for name, bins in (("horizon", None), ("gap", GAPS)):
            figures.append(
                (
                    f"{task}: PSNR against {name}",
                    _curve(frames[frames["task"] == task], bins, folder / "plots" / f"{task}-{name}"),
                )
            )
    sections = "".join(f"<h2>{html.escape(t)}</h2><img alt='{html.escape(t)}' src='{src}'>" for t, src in figures)
    page = folder / "index.html"
    page.write_text(
        f"<!doctype html><meta charset=utf-8><title>{html.escape(sweep_folder.name)}</title>"
        "<style>body{font:15px sans-serif;max-width:70em;margin:2em auto}td,th{padding:.2em .6em}</style>"
        f"<h1>{html.escape(sweep_folder.name)}</h1>{rounded.to_html(index=False)}{sections}"
    )
    return page


def _markdown(table: pd.DataFrame) -> str:
    lines = [list(table.columns), ["---"] * len(table.columns), *table.astype(str).to_numpy().tolist()]
    return "".join("| " + " | ".join(map(str, line)) + " |\n" for line in lines)


def _curve(frames: pd.DataFrame, bins: list[int] | None, path: Path) -> str:
    figure, axes = plt.subplots(figsize=(6, 3.5))
    kept = frames[frames["intervention"] == "keep"]
    if bins is None:
        kept = kept.assign(x=kept["frame"] // 4 * 4 + 2)
    else:
        kept = kept[kept["kind"] == "revisit"]
        kept = kept.assign(x=pd.cut(kept["gap"], bins).map(lambda b: b.left + 1).astype(float))
    means = seed_means(kept, ["x"])
    for number, (name, part) in enumerate(means.groupby("block")):
        block = str(name)
        points = part.groupby("x")["psnr"].apply(lambda v: interval(v.to_numpy())).apply(pd.Series)
        colour = COLOURS[ORDER.index(block) if block in ORDER else number % len(COLOURS)]
        axes.plot(points.index, points[0], color=colour, label=block)
        axes.fill_between(points.index, points[1], points[2], color=colour, alpha=0.15, lw=0)
    axes.set(xlabel="generated frame" if bins is None else "frames out of sight", ylabel="PSNR, dB")
    axes.legend(fontsize=8)
    figure.tight_layout()
    for suffix in (".svg", ".pdf"):
        figure.savefig(path.with_suffix(suffix))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
