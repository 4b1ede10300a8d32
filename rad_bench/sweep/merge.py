"""Joining sweeps that ran in several places, and comparing two of them. Different metric definitions never mix."""

from __future__ import annotations

import shutil
from pathlib import Path

from rad_bench import strict_yaml
from rad_bench.errors import UserError, unwritten
from rad_bench.report.reading import CONTROLS, Sweep, read_sweep
from rad_bench.report.statistics import Estimate, difference
from rad_bench.results_folder import read_plan
from rad_bench.run_folder import RunFolder, write_atomically
from rad_bench.sweep.sweep import Outcome, finish, planned_runs


def merge(out: Path, folders: list[Path]) -> Outcome:
    """Copy the finished runs of several sweeps into a new one and report on all. Raises `UserError`.

    Runs are the same if their names are: a name ends in the hash of all that decides a result.
    """
    if out.exists():
        raise UserError(f"{out}: exists already; merge into a new folder.")
    _same_cards([read_sweep(_aggregated(folder)) for folder in folders])
    work = out.with_name(f".{out.name}.tmp")
    try:
        shutil.rmtree(work, ignore_errors=True)
        names: dict[str, None] = {}
        for folder in folders:
            for run in planned_runs(folder):
                names[run.name] = None
                source, target = folder / "runs" / run.name, work / "runs" / run.name
                if RunFolder(target).is_done:
                    continue
                if RunFolder(source).is_done or not target.exists():
                    shutil.copytree(source, target, dirs_exist_ok=True)
        plan = {
            **read_plan(folders[0]),
            "name": out.name,
            "merged": [str(folder) for folder in folders],
            "planned": list(names),
        }
        write_atomically(work / "sweep.yaml", strict_yaml.dump(plan).encode())
        work.rename(out)
    except OSError as error:
        raise unwritten(error, out) from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return finish(out, planned_runs(out))


def compare(first: Path, second: Path) -> list[tuple[str, str, Estimate]]:
    """Return (task, block, revisit PSNR of the first sweep less the second's), paired by seed and episode.

    Raises `UserError` if the two were scored differently, on different data, or have no block in common.
    """
    sweeps = [read_sweep(_aggregated(folder)) for folder in (first, second)]
    _same_cards(sweeps)
    data = [{result["data"]["identity"] for result in sweep.results} for sweep in sweeps]
    if data[0] != data[1]:
        raise UserError(f"{first} and {second}: ran on different data ({data[0]} and {data[1]}); nothing is paired.")
    found = []
    for task in sweeps[0].tasks:
        for block in sweeps[0].blocks:
            if block in CONTROLS or block not in sweeps[1].blocks or task not in sweeps[1].tasks:
                continue
            found.append((task, block, difference(*(sweep.revisits(task, block) for sweep in sweeps))))
    if not found:
        names = " and ".join(", ".join(sweep.blocks) for sweep in sweeps)
        raise UserError(f"{first} and {second}: have no block in common ({names}).")
    return found


def _aggregated(folder: Path) -> Path:
    if not (folder / "frames.parquet").is_file():
        raise UserError(f"{folder}: has no frames.parquet; `rad-bench report {folder}` writes it from finished runs.")
    return folder


def _same_cards(sweeps: list[Sweep]) -> None:
    cards = {str(sweep.folder): ", ".join(sorted(set(sweep.frames["card"]))) for sweep in sweeps}
    if len(set(cards.values())) > 1:
        listing = "; ".join(f"{folder}: {card}" for folder, card in cards.items())
        raise UserError(f"these sweeps were scored by different metric definitions and do not mix ({listing}).")
