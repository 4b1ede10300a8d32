"""Statistics, tables, plots and the page, derived from what stands in a sweep's folder."""

from __future__ import annotations

from pathlib import Path


def write_report(sweep_folder: Path) -> Path:
    """Write summary.csv and report/ of a sweep from its frames.parquet and results; return the page."""
    from rad_bench.report.ablation import ablation_rows
    from rad_bench.report.memory import memory_rows, probes
    from rad_bench.report.page import write_page
    from rad_bench.report.plots import draw_plots
    from rad_bench.report.summary import read_sweep, summarise, summary_table
    from rad_bench.report.tables import ablations, cost, headline, interventions, matrix, memory, pairs_table, probe

    sweep = read_sweep(sweep_folder)
    rows, pairs = summarise(sweep)
    summary_table(rows).to_csv(sweep_folder / "summary.csv", index=False, encoding="utf-8")
    report = sweep_folder / "report"
    recalled = memory_rows(sweep.frames, sweep.blocks, sweep.tasks)
    read = {block: probes(sweep.results_of(block)) for block in sweep.blocks}
    tables = [headline(rows), interventions(rows), memory(recalled), probe(read), cost(rows)]
    tables += [ablations(ablation_rows(sweep)), matrix(pairs), pairs_table(pairs)]
    (report / "tables").mkdir(parents=True, exist_ok=True)
    for table in tables:
        (report / "tables" / f"{table.name}.md").write_text(table.markdown(), encoding="utf-8")
        (report / "tables" / f"{table.name}.tex").write_text(table.latex(), encoding="utf-8")
    plots = draw_plots(sweep, rows, report / "plots")
    page = report / "index.html"
    write_page(page, sweep, rows, pairs, tables, plots)
    return page
