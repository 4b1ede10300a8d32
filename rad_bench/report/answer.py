"""The answer at the top of the page: which memory, how sure, at what cost. It claims only what the statistics show."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rad_bench.evaluation.controls import CONTROLS, COPY_LAST
from rad_bench.report.ablation import AblationRow
from rad_bench.report.caveats import caveats, scope
from rad_bench.report.cost import baseline, machine
from rad_bench.report.intervals import Pair, best_group, find_pair, smallest_shown
from rad_bench.report.load import Load
from rad_bench.report.reading import Sweep, base_name
from rad_bench.report.summary import Row
from rad_bench.report.table import listing, number_text, p_text, show
from rad_bench.report.tables import state_text
from rad_bench.report.tuning import Tuned, tuning_sentences

LEVEL = 0.05


def answer(
    sweep: Sweep,
    rows: list[Row],
    pairs: dict[str, list[Pair]],
    axes: list[AblationRow],
    held: Sequence[Load] = (),
    tuning: Sequence[Tuned] = (),
) -> list[tuple[str, list[str]]]:
    """Return the three parts of the answer, as (question, sentences)."""
    which: list[str] = []
    sure = caveats(sweep, rows)
    leaders: list[str] = []  # blocks whose cost is named; the table has the cost of all
    for task in sweep.tasks:
        own = [row for row in rows if row.task == task and np.isfinite(row.revisit["psnr"].mean)]
        ranked = sorted((row for row in own if row.block not in CONTROLS), key=lambda row: -row.revisit["psnr"].mean)
        if not ranked:
            which.append(
                f"On {task}, no generated frame is known to be a revisit, so nothing can be said about memory."
            )
            continue
        sentences = [_leader(sweep, f"On {task}", ranked, pairs[task]), *_above_controls(ranked, own, pairs[task])]
        leaders.append(ranked[0].block)
        constant = [row for row in ranked if row.carries_state and not row.state_grows]
        if len(constant) > 1 and ranked[0].state_grows:
            sentences += [_leader(sweep, "Of the memories of constant size", constant, pairs[task])]
            sentences += _gap_closed(constant[0])
            leaders.append(constant[0].block)
        sentences += _held([load for load in held if load.task == task]) or _recalled([ranked[0], *constant[:1]])
        which += [" ".join(sentences), *_by_axis(task, axes)]
        sure.append(" ".join([_lead(task, ranked, pairs[task]), *_usage(ranked)]))
    if any(np.isfinite(pair.p) for compared in pairs.values() for pair in compared):
        along = "; for an axis, over its values with the other axes fixed" if axes else ""
        sure.append(f"Distinguishable: p < {LEVEL} after Holm's correction over all pairs of a task{along}.")
    leaders += [row.block for row in rows if base_name(row.block) == "none"][:1]
    costs = _costs(sweep, rows, list(dict.fromkeys(leaders)))
    sure += [*tuning_sentences(sweep, tuning), scope(sweep)]
    return [("Which memory?", which), ("How sure?", sure), ("At what cost?", costs)]


def _leader(sweep: Sweep, where: str, ranked: list[Row], pairs: list[Pair]) -> str:
    """Say which of some rows of one task is highest, and which others are not distinguishable from it."""
    first, others = ranked[0], ranked[1:]
    best = best_group({row.block: sweep.revisits(row.task, row.block) for row in ranked}, pairs)
    equal = [row.block for row in others if row.block in best]
    if not others:
        place = "the only one"
    elif not any(np.isfinite(pair.p) for pair in pairs):
        place, equal = "highest (no ranking)", []
    else:
        place = f"highest, not distinguishable from {listing(equal)}" if equal else "best"
    text = f"{where}, {first.block} is {place}: {show(first.revisit['psnr'], 1)} dB on revisits."
    if first.verdict.startswith("not shown"):
        text += f" But {first.block} is not shown to use its memory."
    if others and (first.verdict == "carries none" or "none" in map(base_name, equal)):
        text += " So no memory is shown to do better than none."
    return text


def _gap_closed(row: Row) -> list[str]:
    """Say which share of the gap from none to full attention a block closes: what compares between papers."""
    if row.gap_closed is None or not np.isfinite(row.gap_closed.mean):
        return []
    return [f"It closes {show(row.gap_closed)} of the gap from none to full attention."]


def _recalled(leaders: list[Row]) -> list[str]:
    """Say how many bits of what the context has shown are right in the rollouts of the leading blocks."""
    held = [(block, row.capacity) for block, row in {row.block: row for row in leaders}.items() if row.capacity]
    if not held:
        return []
    bits = listing([f"{block} {show(capacity.bits, 1)}" for block, capacity in held])
    _, first = held[0]
    return [
        f"Of the {first.offered:.0f} bits in the colours of {first.items:.0f} surfaces that only memory can know, "
        f"generated frames hold: {bits}."
    ]


def _held(held: Sequence[Load]) -> list[str]:
    """Say how many surfaces each block holds until half of their colours are lost, most first."""
    trained = [load for load in held if load.block not in CONTROLS]
    if not trained:
        return []
    place = {"more than": 0, "": 1, "fewer than": 2}
    ranked = sorted(trained, key=lambda load: (place[load.outside], -np.nan_to_num(load.half.mean)))
    surfaces = listing([f"{load.block} {load.half_text or show(load.half, 0)}" for load in ranked])
    return [f"Surfaces that a memory holds until half of their colours are lost: {surfaces}."]


def _above_controls(ranked: list[Row], own: list[Row], pairs: list[Pair]) -> list[str]:
    """Say how far the leader is above three controls: none, feedforward, and repeating the last true frame."""
    first, differences = ranked[0].block, []
    for control in (row.block for row in ranked[1:] if base_name(row.block) in ("none", "feedforward")):
        pair = find_pair(first, control, pairs)
        if pair is not None:
            differences.append(f"{show(pair.difference, 1)} dB above {control}{_significance(pair)}")
    sentences = [f"{first} is {listing(differences)}."] if differences else []
    for still in (row.revisit["psnr"].mean for row in own if row.block == COPY_LAST):
        below = [row.block for row in ranked if row.revisit["psnr"].mean < still]
        more = f", more than {listing(below)}" if below else ""
        sentences.append(f"Repeating the last true frame gives {still:.1f} dB{more}.")
    return sentences


def _by_axis(task: str, rows: list[AblationRow]) -> list[str]:
    """Say what each value of an axis gains over the axis's first value, over all settings of the other axes."""
    sentences = []
    for axis in dict.fromkeys(row.axis for row in rows if row.task == task):
        own = [row for row in rows if row.task == task and row.axis == axis]
        firsts = dict.fromkeys(row.value for row in own if row.less_first is None)
        gains = []
        for value in dict.fromkeys(row.value for row in own if row.less_first is not None):
            settings = [row for row in own if row.value == value]
            means = sorted(row.less_first.mean for row in settings if row.less_first is not None)
            span = _span([number_text(mean, 1, signed=True) for mean in means])
            clear = sum(row.p_holm is not None and row.p_holm < LEVEL for row in settings)
            gains.append(f"{value} gives {span} dB, distinguishable at {clear} of {len(means)} settings of the rest")
        sentences.append(f"On {task}, axis {axis}, against {listing(list(firsts))}: {'; '.join(gains)}.")
    return sentences


def _lead(task: str, ranked: list[Row], pairs: list[Pair]) -> str:
    """Say by how much the first block leads the second, and which difference could have been detected."""
    if len(ranked) < 2:
        return f"On {task}, there is only one block, so nothing to compare."
    first, second = ranked[0].block, ranked[1].block
    pair = find_pair(first, second, pairs)
    if pair is None:
        return f"On {task}, {first} and {second} have no seed or no frame in common and are not compared."
    text = f"On {task}, {first} leads {second} by {show(pair.difference, 1)} dB{_significance(pair)}."
    least = smallest_shown(pair, sum(np.isfinite(other.p) for other in pairs))
    if not np.isfinite(least) or pair.p_holm < LEVEL:
        return text
    return f"{text} The smallest detectable difference, at their spread over seeds, is {least:.1f} dB."


def _significance(pair: Pair) -> str:
    """Say whether a difference is distinguishable from zero; with one seed there is no p-value."""
    p = p_text(pair.p_holm)
    if not np.isfinite(pair.p_holm):
        return f" ({p})"
    return f" ({'' if pair.p_holm < LEVEL else 'not '}distinguishable, p {p if p.startswith('<') else f'= {p}'})"


def _usage(ranked: list[Row]) -> list[str]:
    """Say which memories are shown to be used, from the loss by a swap."""
    using = [row for row in ranked if row.verdict.startswith("uses")]
    idle = [row.block for row in ranked if row.verdict.startswith("not shown")]
    sentences = []
    if using:
        span = _span([f"{loss:.1f}" for loss in sorted(row.drops["swap"].mean for row in using)])
        conclusion = "; one seed cannot confirm this" if max(row.seeds for row in using) == 1 else ", so memory is used"
        sentences.append(
            f"Another episode's memory costs {listing([row.block for row in using])} {span} dB{conclusion}."
        )
    return [*sentences, f"Not shown to use their memory: {listing(idle)}."] if idle else sentences


def _costs(sweep: Sweep, rows: list[Row], blocks: list[str]) -> list[str]:
    """Say the parameters, state and time of some blocks; their FLOPs, where no time was taken."""
    costs = {row.block: row for row in rows if row.cost}
    sentences = []
    for row in (costs[block] for block in blocks if block in costs):
        state = f"a state of {state_text(row)}" if row.carries_state else "no state"
        base, timed = baseline(sweep, row.block), "last_frames_ratio" in row.cost
        ratio = row.cost["last_frames_ratio" if timed else "flops_ratio"]
        than = f"; a frame takes {ratio:.2f} times the {'time' if timed else 'FLOPs'} of {base}"
        than = "" if base == row.block else than
        sentences.append(f"{row.block}: {row.cost['memory_parameters']:,.0f} parameters, {state}{than}.")
    if not sentences:
        return ["No costs are known."]
    sizes = "Parameters: of the memory. State: per video at the horizon's end, without the attention window."
    return [*sentences, f"{sizes} {machine(sweep)}"]


def _span(texts: list[str]) -> str:
    return texts[0] if texts[0] == texts[-1] else f"{texts[0]} to {texts[-1]}"
