"""What a reader must know before believing an answer: what is missing, what it rests on, for what it holds."""

from __future__ import annotations

from rad_bench.evaluation.controls import CONTROLS
from rad_bench.report.curves import LEAST_EPISODES
from rad_bench.report.intervals import seeds_note
from rad_bench.report.reading import Sweep, base_name
from rad_bench.report.summary import Row
from rad_bench.report.table import listing

TOLD_BY = {  # blocks that are controls -> what only a comparison with them says
    "none": "what memory gives over a trunk without it",
    "feedforward": "what as many parameters give without memory",
    "attention": "how far below full attention a memory stays",
}


def caveats(sweep: Sweep, rows: list[Row]) -> list[str]:
    """Return what weakens any answer, as sentences."""
    note = seeds_note(max((row.seeds for row in rows), default=0), _episodes(sweep))
    return [note, *_missing(sweep, rows), *_thin(sweep), *_lacking(sweep)]


def _missing(sweep: Sweep, rows: list[Row]) -> list[str]:
    """Say which runs are missing, or seeds of single blocks."""
    told = []
    if sweep.failures:
        count, planned = len(sweep.failures), len(sweep.failures) + len(sweep.results)
        told.append(
            f"{count} of {planned} planned runs {'is' if count == 1 else 'are'} missing (below, with the reasons)."
        )
    seeds = {row.block: row.seeds for row in rows if row.block not in CONTROLS}
    short = [f"{block} ({count})" for block, count in seeds.items() if count < max(seeds.values())]
    if short:
        told.append(
            f"Fewer seeds than the others have: {', '.join(short)}; an interval from one seed shows evaluation noise "
            "only."
        )
    return told


def _thin(sweep: Sweep) -> list[str]:
    """Say where revisits are few, or where not all models were asked for the same frames."""
    told = []
    revisits = sweep.frames[sweep.frames["kind"] == "revisit"]
    for task, found in revisits.groupby("task", sort=False):
        episodes = found["episode"].nunique()
        if episodes < LEAST_EPISODES:
            frames = len(found[["episode", "frame"]].drop_duplicates())
            told.append(f"On {task} revisits are {frames} frames of {episodes} episodes, too few to rest much on.")
    for task, share in sweep.unshared.items():
        if share == 1:
            told.append(
                f"On {task} not all models were asked for the same frames: only those that were are paired, and means "
                "of others are of other frames."
            )
        elif share:
            told.append(f"On {task} {share:.0%} of what was generated is left out: not all models were asked for it.")
    return told


def _lacking(sweep: Sweep) -> list[str]:
    """Say which controls the sweep lacks, and what cannot be said without them."""
    known = set(map(base_name, sweep.blocks))
    lacking = {name: told for name, told in TOLD_BY.items() if name not in known}
    if not lacking:
        return []
    untold = ", nor ".join(lacking.values())
    return [f"Controls that this sweep lacks: {listing(list(lacking))}. So it does not say {untold}."]


def _episodes(sweep: Sweep) -> str:
    return " or ".join(dict.fromkeys(str(result.episodes) for result in sweep.results))


def scope(sweep: Sweep) -> str:
    """Say for what the answer holds."""
    steps = dict.fromkeys(str(r.training.steps) for r in sweep.results)
    trunks = dict.fromkeys(f"{r.parameters.trunk:,}" for r in sweep.results)
    parts = [
        ", ".join(dict.fromkeys(r.data.name for r in sweep.results)),
        f"{listing(list(steps))} training steps" if steps else "",
        f"a trunk of {listing(list(trunks))} parameters" if trunks else "",
        f"these {_episodes(sweep)} episodes and this sampling noise",
    ]
    held = ", ".join(part for part in parts if part)
    return f"It holds for what was run: {held}; other worlds, sizes and budgets may differ."
