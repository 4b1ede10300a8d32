"""The report of a sweep: statistics, tables, plots and the page."""

from __future__ import annotations

from pathlib import Path


def write_report(sweep_folder: Path) -> Path:
    """Write summary.parquet, summary.csv and report/ of a sweep from its frames and results; return the page's path."""
    from rad_bench.report import tables
    from rad_bench.report.ablation import ablation_rows
    from rad_bench.report.answer import answer
    from rad_bench.report.cost import base_times, machine
    from rad_bench.report.evidence import budgets, gaps, need, parity
    from rad_bench.report.learning import learning_curves, learning_table, order_sentences
    from rad_bench.report.load import loads
    from rad_bench.report.page import write_page
    from rad_bench.report.plots import draw_plots
    from rad_bench.report.reading import read_sweep
    from rad_bench.report.summary import summarise, write_summary
    from rad_bench.report.tuning import read_tuning, tuned_note, tuning_table
    from rad_bench.report.usage import memory_rows, probes

    sweep = read_sweep(sweep_folder)
    rows, pairs = summarise(sweep)
    write_summary(rows, sweep_folder)
    report = sweep_folder / "report"
    axes = ablation_rows(sweep)
    curves = learning_curves(sweep)
    held = loads(sweep)
    memory = memory_rows(sweep.frames, sweep.blocks, sweep.tasks)
    probe_scores = {block: probes(sweep.trained_of(block)) for block in sweep.blocks}
    tuning = read_tuning(sweep)
    written = [
        tables.headline(rows, tuned_note(sweep, tuning)),
        tables.paper(rows),
        tables.interventions(rows),
        tables.capacity(rows),
        tables.load(held, rows),
    ]
    written += [
        tables.memory(memory),
        tables.probe(probe_scores),
        tables.distances(rows),
        tables.cost(rows, f"{machine(sweep)} {base_times(sweep)}"),
        tables.ablations(axes),
        tables.matrix(pairs),
    ]
    written += [
        tables.pairs_table(pairs),
        need(sweep),
        gaps(sweep),
        budgets(sweep),
        parity(sweep),
        learning_table(curves),
        tuning_table(sweep, tuning),
    ]
    (report / "tables").mkdir(parents=True, exist_ok=True)
    for table in written:
        (report / "tables" / f"{table.name}.md").write_text(table.markdown(), encoding="utf-8")
        (report / "tables" / f"{table.name}.tex").write_text(table.latex(), encoding="utf-8")
    plots = draw_plots(sweep, rows, report / "plots", curves, held)
    page = report / "index.html"
    write_page(page, sweep, answer(sweep, rows, pairs, axes, held, tuning), written, plots, order_sentences(curves))
    return page
