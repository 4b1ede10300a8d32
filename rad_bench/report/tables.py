"""The report's tables."""

from __future__ import annotations

import numpy as np

from rad_bench.evaluation.controls import CONTROLS
from rad_bench.evaluation.metrics import score_columns
from rad_bench.report.ablation import AblationRow
from rad_bench.report.cost import PARTS
from rad_bench.report.intervals import LEAST_LOSS, Estimate, Pair
from rad_bench.report.load import Load
from rad_bench.report.summary import Row
from rad_bench.report.table import Table, bounds, number_text, p_text, show
from rad_bench.report.usage import MemoryRow
from rad_bench.units import show_bytes

BOLD = "bold: not distinguishable from the best on its task (paired t, Holm, 5 %)"
NO_BOLD = "nothing is bold: one seed gives no significance"
NAMED_COLUMNS = 6  # most named columns of the matrix; more are numbered


def headline(rows: list[Row], tuned: str = "") -> Table:
    """Quality on revisit frames, one row per block and task: every measured metric, and PSNR of the other classes.

    `tuned` says whether the blocks were tuned.
    """
    columns = {column for row in rows for column in row.revisit}
    metrics = {name: metric for name, metric in score_columns().items() if name in columns and name != "psnr"}
    header = ["block", "task", "seeds", "revisit PSNR, dB", "over none, dB", "share of the gap"]
    header += ["over none, other episodes too"]
    header += [f"revisit {metric.title}" for metric in metrics.values()]
    header += ["pooled PSNR", "recent", "partial", "novel", "all"]
    cells, bold = [], set()
    for number, row in enumerate(rows):
        # A control is not trained: its seeds are copies, so an interval over them has no meaning.
        control = row.block in CONTROLS
        line = [row.block, row.task, "" if control else str(row.seeds), _shown(row, "psnr", 2)]
        line += ["" if control else show(row.over_none, signed=True), show(row.gap_closed)]
        line += ["" if control else bounds(row.over_none_elsewhere)]
        line += [_shown(row, name, metric.digits) for name, metric in metrics.items()]
        line += [number_text(row.pooled_psnr), *(number_text(value) for value in row.kinds.values())]
        cells.append(line)
        bold |= {(number, 7 + place) for place, metric in enumerate(metrics) if row.best.get(metric)}
        if row.best["psnr"]:
            bold |= {(number, 0), (number, 3)}
    caption = f"PSNR by frame class; {BOLD if bold else NO_BOLD}; over none: difference to none, not corrected; "
    caption += "other episodes too: its interval over trainings and episodes together; "
    caption += "share of the gap: (block - none) / (attention - none) in revisit PSNR"
    caption += f"; {tuned}" if tuned else ""
    return Table("headline", caption, header, cells, bold).without_empty_columns()


def paper(rows: list[Row]) -> Table:
    """For a paper: one row per block, with its cost, and for every task its quality and its loss by a swap."""
    tasks = list(dict.fromkeys(row.task for row in rows))
    by_place = {(row.block, row.task): row for row in rows}
    header = ["memory", "state", "FLOPs, ratio", "time of a frame, ratio"]
    for task in tasks:
        header += [f"{task}: revisit PSNR, dB", f"{task}: lost by swap, dB"]
    cells: list[list[str]] = []
    bold: set[tuple[int, int]] = set()
    for block in dict.fromkeys(row.block for row in rows):
        row = next(row for row in rows if row.block == block)
        ratios = [number_text(row.cost.get(key, np.nan)) for key in ("flops_ratio", "last_frames_ratio")]
        line = [block, state_text(row) if row.cost else "", *ratios]
        for task in tasks:
            row = by_place[block, task]
            line += [_shown(row, "psnr", 1), show(row.drops.get("swap"), 1)]
            if row.best["psnr"]:
                bold.add((len(cells), len(line) - 2))
        cells.append(line)
    caption = (
        f"Mean and 95 % interval over seeds; {BOLD if bold else NO_BOLD}; state: per video at the horizon's end, "
        "without the attention window; ratios: to `none`, of a frame; lost by swap: shows that memory is used, not "
        "what it gains"
    )
    return Table("paper", caption, header, cells, bold).without_empty_columns()


def _shown(row: Row, metric: str, digits: int) -> str:
    if metric not in row.revisit:
        return ""
    return number_text(row.revisit[metric].mean, digits) if row.block in CONTROLS else show(row.revisit[metric], digits)


def state_text(row: Row) -> str:
    """Format the size of a block's state at the horizon's end, and whether it grows."""
    return show_bytes(row.cost["state_bytes_end"]) + (" (grows)" if row.state_grows else "")


def interventions(rows: list[Row]) -> Table:
    """Loss by swapping or resetting memory, and gain of memory over none."""
    cells = [
        [row.block, row.task, show(row.revisit["psnr"]), *(show(row.drops.get(i)) for i in ("swap", "reset"))]
        + [show(row.over_none, signed=True), row.verdict]
        for row in rows
        if row.block not in CONTROLS
    ]
    header = ["block", "task", "revisit PSNR, dB", "lost by swap, dB", "lost by reset, dB", "over none, dB", "verdict"]
    caption = (
        "Revisit PSNR lost with another episode's memory (swap) and with an empty memory (reset: training may never "
        "have seen this). A swapped memory is wrong: its loss shows that memory is used, and may be more than memory "
        f"gains over none. Verdict: used, if the swap loses at least {LEAST_LOSS} dB and the 95 % interval is above "
        "zero; each block and task alone, not corrected"
    )
    return Table("interventions", caption, header, cells).without_empty_columns()


def capacity(rows: list[Row]) -> Table:
    """How many colours each block gets right, in bits, and per kilobyte of state."""
    cells = []
    for row in rows:
        if row.capacity is None:
            continue
        state, bits = row.cost.get("state_bytes_end", 0), row.capacity.bits
        cells.append(
            [row.block, row.task, f"{row.capacity.items:.1f}", _shown(row, "recall", 2)]
            + [number_text(row.capacity.offered, 1)]
            + [number_text(bits.mean, 1) if row.block in CONTROLS else show(bits, 1)]
            + [show_bytes(state) if state else "", _per_kilobyte(bits.mean, state)]
        )
    header = ["block", "task", "surfaces", "recall", "bits offered", "bits recovered", "state", "bits per kB"]
    caption = (
        "Colours of surfaces in revisit frames that only a memory can know, read off the generated frames. Surfaces: "
        "asked for in an episode; recall: share of right colours; bits recovered: surfaces times what an answer "
        "carries at that recall, 0 at chance; state: at the end of the horizon"
    )
    return Table("capacity", caption, header, cells)


def _per_kilobyte(bits: float, state: float) -> str:
    return number_text(1000 * bits / state, 2) if state else ""


def load(loads: list[Load], rows: list[Row]) -> Table:
    """How many surfaces each block holds until half is lost, and the most bits that it recovers."""
    states = {row.block: row.cost.get("state_bytes_end", 0) for row in rows}
    cells = []
    for one in loads:
        most, state = one.most, states.get(one.block, 0)
        control = one.block in CONTROLS
        cells.append(
            [one.block, one.task, show_bytes(state) if state else "", one.half_text or show(one.half, 0)]
            + [number_text(most.bits.mean, 1) if control else show(most.bits, 1), f"{most.items:.0f}"]
            + [_per_kilobyte(most.bits.mean, state)]
        )
    header = ["block", "task", "state", "surfaces until half is lost", "most bits", "at surfaces", "bits per kB"]
    caption = (
        "Worlds with few and with many surfaces; surfaces: asked for in an episode. Until half is lost: where the bits "
        "recovered fall below half of those offered. State: at the end of the horizon"
    )
    return Table("load", caption, header, cells)


def distances(rows: list[Row]) -> Table:
    """How far each block's videos are from true ones, as distributions."""
    cells = []
    for row in rows:
        if row.distance is not None:
            own = row.distance
            fvd = number_text(own.fvd.mean, 1) if row.block in CONTROLS else show(own.fvd, 1)
            halves = number_text(own.halves, 1)
            cells.append([row.block, row.task, fvd, halves, str(own.clips), str(own.frames), own.size, own.absent])
    header = ["block", "task", "FVD", "half the truth against half", "clips", "frames of a clip", "pixels of a frame"]
    header += ["absent, because"]
    caption = (
        "FVD over all generated frames, without their context: less is more like true videos, though not like the "
        "right ones. Few clips raise it: half of the true episodes against the other half shows by how much, with half "
        "as many clips. Compare only equal numbers of clips of one length and size"
    )
    return Table("fvd", caption, header, cells).without_empty_columns()


def memory(rows: list[MemoryRow]) -> Table:
    """Consistency of rollouts with themselves, and how long memory is used."""
    cells = [[row.block, row.task, _nmr(row), str(row.pairs), _lives(row)] for row in rows if row.block not in CONTROLS]
    header = ["block", "task", "NMR", "revisit pairs", "half-life of the swap's loss, frames"]
    caption = (
        "NMR: similarity of views that come back into sight within the model's own rollout, 0: no memory, 1: as "
        "consistent as neighbouring frames of one view; undefined if the camera shows no view twice in a row; revisit "
        "pairs: in the rollouts of one seed. Half-life: generated frames after the context until the loss by a "
        "swap has fallen to half of its first value (over the first four frames with 20 revisits or more); median over "
        "seeds (range)"
    )
    return Table("memory", caption, header, cells)


def probe(scores: dict[str, dict[str, Estimate]]) -> Table:
    """Scores of a linear probe of each block's state."""
    names = list(dict.fromkeys(name for own in scores.values() for name in own))
    cells = [[block, *(show(own.get(name)) for name in names)] for block, own in scores.items() if own]
    caption = (
        "R^2 of a linear probe of the memory's state after the context, computed over what the context has shown; 0: "
        "no better than the mean. A growing state has no fixed size, so it is not probed"
    )
    return Table("probe", caption, ["block", *names], cells)


def _nmr(row: MemoryRow) -> str:
    few = f" ({row.nmr.seeds} of {row.seeds} seeds)" if row.nmr.seeds < row.seeds else ""
    return show(row.nmr) + few if row.nmr.seeds else "undefined"


def _lives(row: MemoryRow) -> str:
    lives = [life for life in row.half_life if not np.isnan(life)]
    if not lives:
        return "no loss to halve, or too few revisits"

    def text(life: float) -> str:
        return f"over {row.horizon}" if np.isinf(life) else f"{life:.0f}"

    median = float(np.median(lives))
    spread = f" ({text(min(lives))} to {text(max(lives))})" if min(lives) != max(lives) else ""
    return text(median) + spread


def matrix(pairs: dict[str, list[Pair]]) -> Table:
    """Block against block: revisit PSNR of the row minus that of the column."""
    blocks = list(dict.fromkeys(name for own in pairs.values() for pair in own for name in (pair.first, pair.second)))
    numbered = len(blocks) > NAMED_COLUMNS
    cells: list[list[str]] = []
    bold: set[tuple[int, int]] = set()
    for task, own in pairs.items():
        differences = {(pair.first, pair.second): (pair.difference.mean, pair.p_holm) for pair in own}
        differences |= {(second, first): (-mean, p) for (first, second), (mean, p) in differences.items()}
        for number, first in enumerate(blocks, 1):
            line = [f"{number}: {first}" if numbered else first, task]
            for second in blocks:
                mean, p = differences.get((first, second), (np.nan, np.nan))
                if p < 0.05:
                    bold.add((len(cells), len(line)))
                line.append(number_text(mean, signed=True))
            cells.append(line)
    caption = "Revisit PSNR of the row minus that of the column, dB; bold: p below 0.05 after Holm's correction"
    columns = [str(number) for number in range(1, len(blocks) + 1)] if numbered else blocks
    return Table("matrix", caption, ["block", "task", *columns], cells, bold)


def ablations(rows: list[AblationRow]) -> Table:
    """One axis at a time, with the other axes fixed."""
    cells: list[list[str]] = []
    bold: set[tuple[int, int]] = set()
    for row in rows:
        if row.p_holm is not None and row.p_holm < 0.05:
            bold |= {(len(cells), 5), (len(cells), 6)}
        p = "" if row.p_holm is None else p_text(row.p_holm)
        line = [row.axis, row.task, row.others, row.value, show(row.revisit), show(row.less_first, signed=True), p]
        cells.append(line)
    header = ["axis", "task", "with", "value", "revisit PSNR, dB", "minus the axis's first, dB", "p (Holm)"]
    caption = (
        "One axis at a time, paired by seed; bold: p below 0.05 after Holm's correction over the values of the axis "
        "with the other axes fixed, not over the whole table"
    )
    return Table("ablations", caption, header, cells, bold).without_empty_columns()


def cost(rows: list[Row], times: str = "") -> Table:
    """What each block costs; `times` says how its time was taken."""
    header = [
        "block", "memory parameters", "trunk parameters", "memory MFLOPs per frame", "trunk MFLOPs per frame",
        "FLOPs, ratio", *PARTS.values(), "state bytes, 1 step", "state bytes, end", "window, bytes per video",
        "peak memory, MB",
    ]  # fmt: skip
    cells = []
    for row in {row.block: row for row in rows if row.cost}.values():
        c = row.cost
        parameters = [f"{int(c[f'{part}_parameters']):,}" for part in ("memory", "trunk")]
        flops = [f"{c[f'{part}_flops_per_frame'] / 1e6:.2f}" for part in ("memory", "trunk")]
        state = [f"{int(c[f'state_bytes_{when}']):,}" for when in ("start", "end")]
        ratios = [number_text(c["flops_ratio"]), *(_ratio(c, part) for part in PARTS)]
        window = f"{int(c['window_bytes']):,}" if "window_bytes" in c else ""
        memory = f"{c['peak_memory_bytes'] / 1e6:.0f}"
        cells.append([row.block, *parameters, *flops, *ratios, *state, window, memory])
    caption = (
        "Cost; FLOPs: forward, per frame of a training clip; ratios: to `none`, or to the first block without it; "
        "state: of the memory, without the window of the trunk's attention, which every block needs too; peak memory: "
        f"of a run's process. {times}"
    ).rstrip()
    return Table("cost", caption, header, cells).without_empty_columns()


def _ratio(costs: dict[str, float], part: str) -> str:
    if f"{part}_ratio" not in costs:
        return ""
    middle, low, high = (number_text(costs[f"{part}_ratio{end}"]) for end in ("", "_low", "_high"))
    return middle if low == high else f"{middle} [{low}, {high}]"


def pairs_table(pairs: dict[str, list[Pair]]) -> Table:
    """The comparison of every block with every other."""
    cells: list[list[str]] = []
    bold: set[tuple[int, int]] = set()
    for task, own in pairs.items():
        for pair in own:
            if pair.p_holm < 0.05:
                bold |= {(len(cells), 2), (len(cells), 4)}
            p = [p_text(value) for value in (pair.p, pair.p_holm)]
            elsewhere = bounds(pair.over_episodes)
            cells.append([f"{pair.first} - {pair.second}", task, show(pair.difference, signed=True), *p, elsewhere])
    caption = (
        "Differences of revisit PSNR, paired by seed; bold: p below 0.05 after Holm's correction over the task's "
        "pairs; other episodes too: the interval over trainings and episodes together, not corrected"
    )
    header = ["pair", "task", "difference, dB", "p", "p (Holm)", "other episodes too"]
    return Table("pairs", caption, header, cells, bold).without_empty_columns()
