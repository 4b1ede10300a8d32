"""The limits of an answer: missing runs, few revisits, missing controls, and the setting it holds for."""

from __future__ import annotations

from rad_bench.evaluation.controls import CONTROLS
from rad_bench.report.curves import LEAST_EPISODES
from rad_bench.report.intervals import seeds_note
from rad_bench.report.peeking import peeking_sentences
from rad_bench.report.reading import Sweep, base_name
from rad_bench.report.summary import Row
from rad_bench.report.table import listing
from rad_bench.store.history import read_history

CONTROL_BLOCKS = {  # block -> what only a comparison with it shows
    "none": "what memory gives over a trunk without memory",
    "feedforward": "what the same number of parameters gives without memory",
    "attention": "how far below full attention a memory stays",
}


def caveats(sweep: Sweep, rows: list[Row]) -> list[str]:
    """Return what limits every answer, as sentences."""
    note = seeds_note(max((row.seeds for row in rows), default=0), _episodes(sweep))
    missing = [*_missing_runs(sweep, rows), *_nothing_to_learn(sweep), *_few_revisits(sweep)]
    history = peeking_sentences(read_history(sweep.plan))
    return [note, *history, *missing, *_suspects(sweep), *_missing_controls(sweep)]


def _missing_runs(sweep: Sweep, rows: list[Row]) -> list[str]:
    """Say which runs are missing, and which blocks have fewer seeds than others."""
    sentences = []
    if sweep.failures:
        count, planned = len(sweep.failures), len(sweep.failures) + len(sweep.results)
        sentences.append(f"{count} of {planned} planned runs {'is' if count == 1 else 'are'} missing (reasons below).")
    seeds = {row.block: row.seeds for row in rows if row.block not in CONTROLS}
    short = [f"{block} ({count})" for block, count in seeds.items() if count < max(seeds.values())]
    if short:
        sentences.append(
            f"Fewer seeds than the other blocks: {', '.join(short)}; an interval from one seed shows evaluation noise "
            "only."
        )
    return sentences


def _nothing_to_learn(sweep: Sweep) -> list[str]:
    """Say which blocks were trained on clips that need no memory."""
    blocks = dict.fromkeys(r.block for r in sweep.results if "training" in r.need and not r.need["training"].share)
    return [f"No trained frame needs a memory ({listing(list(blocks))}): nothing taught one."] if blocks else []


def _few_revisits(sweep: Sweep) -> list[str]:
    """Say where there are few revisits, or where not all models generated the same frames."""
    sentences = []
    revisits = sweep.frames[sweep.frames["kind"] == "revisit"]
    for task, own in revisits.groupby("task", sort=False):
        episodes = own["episode"].nunique()
        if episodes < LEAST_EPISODES:
            frames = len(own[["episode", "frame"]].drop_duplicates())
            sentences.append(
                f"On {task} there are only {frames} revisit frames, of {episodes} episodes: too few for a firm answer."
            )
    for task, share in sweep.unshared.items():
        if share == 1:
            sentences.append(
                f"On {task} not all models generated the same frames: differences use the frames that both blocks "
                "have, but means of different blocks may cover different frames."
            )
        elif share:
            sentences.append(
                f"On {task} {share:.0%} of the generated frames are left out: not all models generated them."
            )
    return sentences


def _suspects(sweep: Sweep) -> list[str]:
    """Say which frames of models from outside can hardly be meant."""
    texts = [
        f"{result.block}, seed {result.seed}: {'; '.join(result.generated.suspects)}"
        for result in sweep.results
        if result.generated is not None and result.generated.suspects
    ]
    return [f"Look at these frames before you quote a number: {listing(texts)}."] if texts else []


def _missing_controls(sweep: Sweep) -> list[str]:
    """Say which controls are not in the sweep, and what is unknown without them."""
    known = set(map(base_name, sweep.blocks))
    missing = {name: question for name, question in CONTROL_BLOCKS.items() if name not in known}
    if not missing:
        return []
    unknown = ", nor ".join(missing.values())
    return [f"Controls missing in this sweep: {listing(list(missing))}. So it does not show {unknown}."]


def _episodes(sweep: Sweep) -> str:
    return " or ".join(dict.fromkeys(str(result.episodes) for result in sweep.results))


def scope(sweep: Sweep) -> str:
    """Say for which setting the answer holds."""
    steps = dict.fromkeys(str(r.training.steps) for r in sweep.trained)
    trunks = dict.fromkeys(f"{r.parameters.trunk:,}" for r in sweep.trained)
    parts = [
        ", ".join(dict.fromkeys(r.data.name for r in sweep.results)),
        f"{listing(list(steps))} training steps" if steps else "",
        f"a trunk of {listing(list(trunks))} parameters" if trunks else "",
        f"these {_episodes(sweep)} episodes and this sampling noise",
    ]
    setting = ", ".join(part for part in parts if part)
    return f"The answer holds for this setting: {setting}; other worlds, sizes and budgets may differ."
