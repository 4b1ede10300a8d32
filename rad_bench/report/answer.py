"""The answer, first on the page: which memory, how sure, at what cost. Never more than the statistics carry."""

from __future__ import annotations

import numpy as np

from rad_bench.evaluation.evaluate import CONTROLS, COPY_LAST
from rad_bench.report.ablation import AblationRow
from rad_bench.report.caveats import caveats, scope
from rad_bench.report.intervals import Estimate, Pair, best_group, smallest_shown
from rad_bench.report.reading import Sweep, base_name
from rad_bench.report.summary import Row
from rad_bench.report.table import byte_text, listing, number_text, p_text, show

LEVEL = 0.05
MOST_NAMED = 6  # blocks in a sentence; the tables hold all


def answer(
    sweep: Sweep, rows: list[Row], pairs: dict[str, list[Pair]], axes: list[AblationRow]
) -> list[tuple[str, list[str]]]:
    """Return the three parts of the answer, as (question, sentences)."""
    which: list[str] = []
    sure = caveats(sweep, rows)
    for task in sweep.tasks:
        every = [row for row in rows if row.task == task and row.block not in CONTROLS]
        found = sorted(
            (row for row in every if np.isfinite(row.revisit["psnr"].mean)), key=lambda row: -row.revisit["psnr"].mean
        )
        if not found:
            which.append(_without_revisits(task, every))
            continue
        along = _by_axis(task, axes)
        which += [
            *along,
            " ".join(
                [
                    *_leaders(task, found, brief=bool(along)),
                    *_constant(sweep, task, found, pairs[task]),
                    *_standing_still(task, found, rows),
                ]
            ),
        ]
        sure.append(" ".join([_nearest(task, found, pairs[task]), *_usage(task, found), *_control(found, pairs[task])]))
    if axes:
        sure.append("Along an axis, p is corrected over its values at one setting of the rest, not over all settings.")
    return [
        ("Which memory?", which),
        ("How sure?", [*sure, scope(sweep)]),
        ("At what cost?", _costs(rows, sweep)),
    ]


def _leaders(task: str, found: list[Row], brief: bool) -> list[str]:
    """Say who leads, the others, and whether it is memory that leads."""
    first = found[0]
    best = [row for row in found if row.best["psnr"]]
    if len(found) == 1:
        text, best = f"On {task}, {first.block}, the only one, reaches {_decibels(first)} on revisits.", [first]
    elif not best:
        text, best = (
            f"On {task}, {first.block} is highest, {_decibels(first)} on revisits, which is no ranking.",
            [first],
        )
    elif len(best) == 1:
        text = f"On {task}, {first.block} is best: {_decibels(first)} on revisits."
    else:
        others = f"{len(best) - 1} of {len(found) - 1} others cannot be told from the highest"
        text = f"On {task}, {others}, {first.block} ({_decibels(first)} on revisits): {_each(best[1:])}."
    rest = [row for row in found if row not in best]
    told = [text, f"Then come {_each(rest)}." if rest and not brief else ""]
    told += [
        f"{row.block} carries no memory: no memory is shown to do better than none."
        for row in best[:1] + [row for row in best[1:] if base_name(row.block) == "none"]
        if row.verdict == "carries none" and len(found) > 1
    ][:1]
    idle = [row.block for row in best if row.verdict.startswith("not shown")]
    if idle:
        uses = "is not shown to use its" if len(idle) == 1 else "are not shown to use their"
        told.append(f"But {_names(idle)} {uses} memory.")
    return [part for part in told if part]


def _constant(sweep: Sweep, task: str, found: list[Row], pairs: list[Pair]) -> list[str]:
    """Say which leads among the memories whose state does not grow, where some do and some do not."""
    carrying = [row for row in found if row.cost.get("state_bytes_end")]
    constant = [row for row in carrying if row.cost["state_bytes_start"] == row.cost["state_bytes_end"]]
    if len(constant) < 2 or constant == carrying:
        return []
    best = best_group({row.block: sweep.revisits(task, row.block) for row in constant}, pairs)
    top = [row for row in constant if row.block in best]
    ahead = _lead(constant[0].block, constant[1].block, pairs)
    if not any(np.isfinite(pair.p) for pair in pairs):
        return [f"Of the memories of constant size, {constant[0].block} is highest{ahead}."]
    if len(top) == 1:
        return [f"Of the memories of constant size, {top[0].block} is best{ahead}."]
    others = _names([row.block for row in top[1:]])
    return [f"Of the memories of constant size, {top[0].block} is highest{ahead}; {others} cannot be told from it."]


def _standing_still(task: str, found: list[Row], rows: list[Row]) -> list[str]:
    """Say what a model would reach that paints the last true frame for ever, and who does not reach that."""
    for row in rows:
        if row.task == task and row.block == COPY_LAST and np.isfinite(row.revisit["psnr"].mean):
            still = row.revisit["psnr"].mean
            below = [other.block for other in found if other.revisit["psnr"].mean < still]
            more = f", more than {_names(below)}" if below else ""
            return [f"Repeating the last true frame gives {still:.1f} dB{more}."]
    return []


def _by_axis(task: str, rows: list[AblationRow]) -> list[str]:
    """Say what each axis of the sweep does, over all places where it was varied."""
    told = []
    own = [row for row in rows if row.task == task]
    for axis in dict.fromkeys(row.axis for row in own):
        places = [row for row in own if row.axis == axis]
        firsts = dict.fromkeys(row.value for row in places if row.less_first is None)
        parts = []
        for value in dict.fromkeys(row.value for row in places if row.less_first is not None):
            found = [row for row in places if row.value == value and row.less_first is not None]
            parts.append(f"{value} gives {_gain(found)}")
        told.append(f"On {task}, axis {axis}, against {' or '.join(firsts)}: {'; '.join(parts)}.")
    return told


def _gain(rows: list[AblationRow]) -> str:
    """Say how much a value gains over the axis's first, and at how many places that is shown."""
    differences = [row.less_first for row in rows if row.less_first is not None]
    shown = [row for row in rows if row.p_holm is not None and row.p_holm < LEVEL]
    if len(rows) == 1:
        p = p_text(rows[0].p_holm if rows[0].p_holm is not None else np.nan)
        verdict = f"p {p}" if p.startswith("<") else p if p == "one seed" else f"p = {p}"
        return f"{show(differences[0], 1, signed=True)} dB ({verdict}{'' if shown else ', not shown'})"
    means = [value.mean for value in differences]
    text = f"{number_text(min(means), 1, signed=True)} to {number_text(max(means), 1, signed=True)} dB"
    if not any(np.isfinite(row.p_holm or 0.0) for row in rows):
        return f"{text} at {len(rows)} settings of the rest (one seed)"
    if not shown:
        return f"{text}, shown at none of {len(rows)} settings of the rest"
    if len(shown) == len(rows):
        return f"{text}, shown at all {len(rows)} settings of the rest"
    places = "; ".join(f"{row.others}: {show(row.less_first, 1, signed=True)}" for row in shown[:MOST_NAMED])
    return f"{text}, shown at {len(shown)} of {len(rows)} settings of the rest ({places})"


def _nearest(task: str, found: list[Row], pairs: list[Pair]) -> str:
    """Say by how much the first leads the second, with its interval and p."""
    if len(found) < 2:
        return f"On {task}, there is nothing to compare with."
    first, second = found[0].block, found[1].block
    pair = _pair(first, second, pairs)
    if pair is None:
        return f"On {task}, {first} and {second} have no seed, or no frame, in common and are not compared."
    p = "" if not np.isfinite(pair.p_holm) else f", p {_equals(pair.p_holm)} after correction over all pairs"
    verdict = "told apart" if pair.p_holm < LEVEL else f"not told apart{_needed(pair, pairs)}"
    return f"On {task}, {first} leads {second} by {show(_ahead(pair, first), 1)} dB{p}: {verdict}."


def _needed(pair: Pair, pairs: list[Pair]) -> str:
    """Say which difference would have been told, at a pair's spread over its seeds."""
    compared = sum(np.isfinite(other.p) for other in pairs)
    least = smallest_shown(pair, compared)
    if not np.isfinite(least):
        return ""
    rests_on = f"their spread over {pair.difference.seeds} seeds and Holm's strictest level of {compared} pairs"
    return f" (smallest detectable difference, at {rests_on}: {least:.1f} dB)"


def _lead(first: str, second: str, pairs: list[Pair]) -> str:
    """Say in passing by how much one block leads another."""
    pair = _pair(first, second, pairs)
    if pair is None:
        return ""
    p = f", p {_equals(pair.p_holm)}" if np.isfinite(pair.p_holm) else ""
    return f" ({show(_ahead(pair, first), 1)} dB over {second}{p})"


def _pair(first: str, second: str, pairs: list[Pair]) -> Pair | None:
    """Return the comparison of two blocks, whichever comes first in it; None if no seed, or no frame, is common."""
    both = (pair for pair in pairs if {pair.first, pair.second} == {first, second} and pair.difference.seeds)
    return next(both, None)


def _ahead(pair: Pair, block: str) -> Estimate:
    """Return by how much one of a pair's blocks leads the other."""
    ahead = pair.difference
    return ahead if pair.first == block else Estimate(-ahead.mean, -ahead.high, -ahead.low, ahead.seeds)


def _control(found: list[Row], pairs: list[Pair]) -> list[str]:
    """Say what parameters give without memory, where a block without one has some."""
    told = []
    for row in found:
        pair = _pair(row.block, "none", pairs) if row.verdict == "carries none" else None
        if pair is not None:
            verdict = "told apart" if pair.p_holm < LEVEL else "not told apart"
            gain = show(_ahead(pair, row.block), 1, signed=True)
            judged = f": {verdict}" if np.isfinite(pair.p_holm) else ""
            told.append(f"Parameters without memory ({row.block}) give {gain} dB over none{judged}.")
    return told


def _equals(p: float) -> str:
    return p_text(p) if p_text(p).startswith("<") else f"= {p_text(p)}"


def _usage(task: str, found: list[Row]) -> list[str]:
    """Say which memories are shown to be used, by what a swap loses."""
    using = [row for row in found if row.verdict.startswith("uses")]
    idle = [row.block for row in found if row.verdict.startswith("not shown")]
    told = []
    if using:
        losses = [row.drops["swap"].mean for row in using]
        span = f"{min(losses):.1f} to {max(losses):.1f}" if len(losses) > 1 else f"{losses[0]:.1f}"
        every = "All that carry a memory" if not idle and len(using) > 1 else _names([row.block for row in using])
        lose, use = ("loses", "it uses its own") if len(using) == 1 else ("lose", "they use theirs")
        so = "; one seed does not settle that" if max(row.seeds for row in using) == 1 else f", so {use}"
        told.append(f"{every} {lose} {span} dB with another episode's memory{so}.")
    gains = [row.over_none.mean for row in using if row.over_none is not None and np.isfinite(row.over_none.mean)]
    if gains:
        span = _span([number_text(gain, 1, signed=True) for gain in sorted(gains)])
        told.append(f"What memory gives is the difference to none: {span} dB.")
    if idle:
        told.append(f"Not shown to use their memory: {', '.join(idle)}.")
    return told


def _costs(rows: list[Row], sweep: Sweep) -> list[str]:
    """Say what each memory carries and takes, the best first."""
    order = sorted(rows, key=lambda row: -np.nan_to_num(row.revisit["psnr"].mean, nan=-np.inf))
    costs = {row.block: row.cost for row in order if row.cost}
    if not costs:
        return ["Nothing is known of costs."]
    parts = []
    for name in dict.fromkeys(map(base_name, costs)):
        own = [cost for block, cost in costs.items() if base_name(block) == name]
        sizes = sorted(cost["state_bytes_end"] for cost in own)
        times = sorted(1000 * cost["seconds_per_frame_end"] for cost in own)
        grows = "a state that grows to " if any(c["state_bytes_start"] != c["state_bytes_end"] for c in own) else ""
        carried = f"{grows}{_span([byte_text(size) for size in sizes])}" if sizes[-1] else "nothing"
        parts.append(f"{name} carries {carried} and takes {_span([f'{time:.2g}' for time in times])} ms a frame")
    left = f"; {len(parts) - MOST_NAMED} more in the table of costs" if len(parts) > MOST_NAMED else ""
    told = [f"A video, at the horizon's end, without the attention window: {'; '.join(parts[:MOST_NAMED])}{left}."]
    counts = sorted(cost["memory_parameters"] for cost in costs.values() if cost["memory_parameters"])
    if counts:
        told.append(f"The memories have {_span([f'{count:,.0f}' for count in counts])} parameters.")
    devices = dict.fromkeys(str(result["device"]) for result in sweep.results)
    told.append(f"Times are those of the runs, on {listing(list(devices))}, with whatever else the machine did.")
    return told


def _span(texts: list[str]) -> str:
    return texts[0] if texts[0] == texts[-1] else f"{texts[0]} to {texts[-1]}"


def _without_revisits(task: str, every: list[Row]) -> str:
    every = sorted(every, key=lambda row: -row.kinds["all"])
    text = f"On {task}, no generated frame is known to be a revisit, so nothing can be said about memory. "
    return text + "PSNR over all frames, dB: " + ", ".join(f"{row.block} {row.kinds['all']:.1f}" for row in every) + "."


def _decibels(row: Row) -> str:
    """Write a block's quality; the interval says how much of it is noise."""
    return f"{row.revisit['psnr'].mean:.1f} dB{_interval(row)}"


def _interval(row: Row) -> str:
    value = row.revisit["psnr"]
    return f" [{value.low:.1f}, {value.high:.1f}]" if np.isfinite(value.low) else ""


def _each(rows: list[Row]) -> str:
    texts = [f"{row.block} ({_decibels(row)})" for row in rows[:MOST_NAMED]]
    return listing(texts) if len(rows) <= MOST_NAMED else f"{', '.join(texts)} and {len(rows) - MOST_NAMED} more"


def _names(names: list[str]) -> str:
    return (
        listing(names)
        if len(names) <= MOST_NAMED
        else f"{', '.join(names[:MOST_NAMED])} and {len(names) - MOST_NAMED} more"
    )
