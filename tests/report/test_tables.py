"""Tables for a paper and for programs, and the command that makes a sweep again."""

import json
import re
import subprocess
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import yaml

from rad_bench.report.evidence import budgets, need, parity, reproduction
from rad_bench.report.reading import read_sweep
from rad_bench.report.summary import summarise, write_summary
from rad_bench.report.table import Table, number_text
from rad_bench.report.tables import cost, headline, interventions, matrix, paper
from rad_bench.store.result import Need
from rad_bench.sweep.grid import plan_runs
from rad_bench.sweep.load import load_sweep
from tests.report.synthetic import write_sweep
from tests.sweep.tiny import TINY


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    return read_sweep(write_sweep(tmp_path_factory.mktemp("sweep")))


def summary_of(folder):
    """Write the summary of a sweep, as a report does, and read it."""
    write_summary(summarise(read_sweep(folder))[0], folder)
    return pd.read_csv(folder / "summary.csv")


def test_a_paper_s_table_has_a_line_a_block_and_both_tasks_under_common_headings(sweep):
    table = paper(summarise(sweep)[0])
    assert [line[0] for line in table.cells] == ["none", "lstm", "mamba2", "copy-last"]
    latex = table.latex()
    assert r"\multicolumn{2}{c}{continuation} & \multicolumn{2}{c}{retrieval}" in latex
    assert r"\cmidrule(lr){4-5}\cmidrule(lr){6-7}" in latex
    widths = {
        len(re.findall(r"(?<!\\)&", line))
        for line in latex.splitlines()
        if line.endswith(r"\\") and "multi" not in line
    }
    assert widths == {6}


def test_bold_is_what_cannot_be_told_from_the_best_and_nothing_on_one_seed(sweep, tmp_path):
    table = headline(summarise(sweep)[0])
    assert {table.cells[row][0] for row, column in table.bold if column == 3} == {"mamba2"}
    table = headline(summarise(read_sweep(write_sweep(tmp_path, seeds=(0,))))[0])
    assert not table.bold and "nothing is bold" in table.caption


def test_a_swap_s_loss_is_said_to_show_use_and_the_difference_to_none_what_memory_gives(sweep, tmp_path):
    table = interventions(summarise(sweep)[0])
    assert table.header[-2:] == ["over none, dB", "verdict"]
    lstm = next(line for line in table.cells if line[:2] == ["lstm", "retrieval"])
    assert lstm[-2].startswith("+6") or lstm[-2].startswith("+5.9")
    assert (
        "at least 0.1 dB" in table.caption
        and "not corrected" in table.caption
        and "swapped memory is wrong" in table.caption
    )
    without = read_sweep(write_sweep(tmp_path, base={"lstm": 18.0, "mamba2": 21.0}))
    assert "over none, dB" not in interventions(summarise(without)[0]).header


def test_controls_have_no_interval_over_seeds_that_are_copies(sweep):
    table = headline(summarise(sweep)[0])
    assert all("[" not in cell for line in table.cells if line[0] == "copy-last" for cell in line)


def test_needs_are_ranges_over_seeds_and_blocks_that_are_alike_share_a_line(sweep):
    def with_need(result):
        share = 0.2 + 0.01 * result.seed
        trained = Need(frames=100, share=share, gaps=(5, 9, 12 + result.seed), episodes=8 - result.seed, of=8)
        scored = Need(frames=50, share=0.0 if result.block == "none" else 0.4, gaps=None, episodes=3, of=8)
        return result.model_copy(update={"need": {"training": trained, "retrieval": scored}})

    table = need(replace(sweep, results=[with_need(result) for result in sweep.results]))
    others = ", ".join(block for block in sweep.blocks if block not in ("none", "copy-last"))
    assert [[re.sub(" and ", ", ", cell) for cell in line] for line in table.cells] == [
        ["all", "training", "20.0 to 22.0 %", "5 9 13", "6 to 8 of 8"],
        ["none", "retrieval", "0.0 %", "", "3 of 8"],
        [others, "retrieval", "40.0 %", "", "3 of 8"],
    ]


def test_controls_have_none_in_the_summary_either(tmp_path):
    summary = summary_of(write_sweep(tmp_path)).set_index(["block", "task"])
    control, trained = summary.loc[("copy-last", "retrieval")], summary.loc[("lstm", "retrieval")]
    assert control["revisit_psnr"] == pytest.approx(11.0, abs=0.3) and trained["seeds"] == 3
    for column in ("seeds", *(name for name in summary if name.endswith(("_low", "_high")))):
        assert pd.isna(control[column]) and not pd.isna(trained[column]), column


def test_quality_against_decoded_truth_is_told_where_there_is_an_autoencoder(sweep, tmp_path):
    assert not [name for name in headline(summarise(sweep)[0]).header if "decoded" in name]
    folder = write_sweep(tmp_path)
    frames = pd.read_parquet(folder / "frames.parquet")
    frames.assign(psnr_decoded=frames["psnr"] + 2, ssim_decoded=0.6).to_parquet(folder / "frames.parquet")
    table = headline(summarise(read_sweep(folder))[0])
    line = dict(zip(table.header, next(line for line in table.cells if line[0] == "copy-last"), strict=True))
    assert float(line["revisit PSNR against decoded truth, dB"]) == pytest.approx(13.0, abs=0.3)
    assert line["revisit SSIM against decoded truth"] == "0.600"
    summary = summary_of(folder)
    np.testing.assert_allclose(summary["revisit_psnr_decoded"], summary["revisit_psnr"] + 2)


def test_the_window_of_attention_stands_beside_the_state_where_it_is_known(sweep, tmp_path):
    assert "window, bytes per video" not in cost(summarise(sweep)[0]).header
    folder = write_sweep(tmp_path)
    for path in folder.glob("runs/lstm-*/result.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "window_bytes": 3072}))
    table = cost(summarise(read_sweep(folder))[0])
    column = table.header.index("window, bytes per video")
    assert {line[0]: line[column] for line in table.cells} == {"none": "", "lstm": "3,072", "mamba2": ""}
    summary = summary_of(folder).set_index("block")
    assert set(summary.loc["lstm", "window_bytes"]) == {3072} and summary.loc["none", "window_bytes"].isna().all()


def test_minus_signs_are_minus_signs_in_latex_and_zero_has_none():
    latex = Table("t", "c", ["a", "b"], [["x-1", "-0.28 [-0.43, -0.12]"]]).latex()
    assert "x-1 & $-$0.28 [$-$0.43, $-$0.12]" in latex
    assert number_text(-0.001) == "0.00" and number_text(-0.001, signed=True) == "0.00" and number_text(np.nan) == ""


def test_the_columns_of_a_large_matrix_are_numbered(tmp_path):
    base = {f"b{number}": 12.0 + number for number in range(8)}
    found = read_sweep(write_sweep(tmp_path, base=base, swap_loss=dict.fromkeys(base, 1.0), episodes=2, horizon=4))
    table = matrix(summarise(found)[1])
    assert table.header == ["block", "task", *map(str, range(1, 9))]
    assert table.cells[7][0] == "8: b7"


def test_summary_parquet_holds_the_rows_of_the_csv_in_columns_of_numbers(tmp_path):
    folder = write_sweep(tmp_path, base={"none": 12.0, "=cmd": 18.0}, swap_loss={"none": 0.0, "=cmd": 3.0})
    csv, parquet = summary_of(folder), pd.read_parquet(folder / "summary.parquet")
    assert list(csv) == list(parquet)
    assert set(parquet["block"]) == {"none", "=cmd"} and "'=cmd" in set(csv["block"])
    for column in set(parquet) - {"block", "task", "verdict", "not_distinguishable_from_best"}:
        assert pd.api.types.is_numeric_dtype(parquet[column]), column
        np.testing.assert_allclose(csv[column], parquet[column])


def test_parity_is_shown_where_it_is_stored_and_said_to_be_missing_where_not(tmp_path):
    folder = write_sweep(tmp_path)
    for seed in range(3):
        path = folder / "runs" / f"lstm-seed{seed}" / "result.json"
        badge = {"path": "chunked", "max_error": 3e-7, "device": "cpu", "why": "its only form"}
        path.write_text(json.dumps({**json.loads(path.read_text()), "parity": badge}))
    cells = {line[0]: line[1:] for line in parity(read_sweep(folder)).cells}
    assert cells["lstm"] == ["chunked", "3e-07", "cpu", "its only form"]
    assert cells["mamba2"] == ["not stored", "", "", ""]


def test_budgets_tell_what_is_left_over(tmp_path):
    folder = write_sweep(tmp_path)
    path = folder / "runs" / "lstm-seed0" / "result.json"
    match = {"by": "parameters", "budget": 1010, "residual": -0.0099}
    memory = {"name": "lstm", "options": {"hidden": 61}}
    path.write_text(json.dumps({**json.loads(path.read_text()), "match": match, "memory": memory}))
    cells = {line[0]: line[1:] for line in budgets(read_sweep(folder)).cells}
    assert cells["lstm"] == ["1,000", "1,010 (parameters)", "-0.99 %", "hidden=61"]
    assert cells["none"][1] == "not sized"


def test_the_command_makes_the_same_runs_when_it_is_copied_into_a_shell(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    config = load_sweep(tmp_path / "tiny.yaml")
    names = [run.name for run in plan_runs(config)]
    folder = write_sweep(tmp_path / "sweep")
    tree = {**config.model_dump(mode="json"), "planned": names}
    (folder / "sweep.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    command = reproduction(read_sweep(folder))
    assert command.splitlines()[0] == "git checkout abcdef0"
    place, bin_ = tmp_path / "place", tmp_path / "bin"
    place.mkdir()
    bin_.mkdir()
    for name in ("git", "rad-bench"):
        (bin_ / name).write_text(f'#!/bin/sh\necho {name} "$@"\n')
        (bin_ / name).chmod(0o755)
    path = {"PATH": f"{bin_}:/usr/bin:/bin"}
    told = subprocess.run(
        ["sh", "-ec", command], cwd=place, env=path, capture_output=True, text=True, check=True
    ).stdout
    (file,) = place.iterdir()
    assert told == f"git checkout abcdef0\nrad-bench sweep {file.name}\n"
    assert [run.name for run in plan_runs(load_sweep(file))] == names


def test_a_name_from_elsewhere_is_no_part_of_a_command(tmp_path):
    folder = write_sweep(tmp_path)
    (folder / "sweep.yaml").write_text(yaml.safe_dump({"name": "x; rm -rf ~", "note": "a\nEND\nb", "planned": []}))
    path = folder / "runs" / "lstm-seed0" / "result.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "commit": "`evil`\n$(evil)"}))
    command = reproduction(read_sweep(folder))
    lines = command.splitlines()
    assert lines.index("END") == len(lines) - 2 and lines[-1] == "rad-bench sweep sweep.yaml"
    assert lines[0].startswith("#") and "evil" not in "".join(lines[1:])
