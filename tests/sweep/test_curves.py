"""The learning curves of runs become the sweep's, wherever its runs go."""

import pandas as pd
import pytest
from click.testing import CliRunner

from rad_bench.cli import cli
from rad_bench.config import RunConfig
from rad_bench.store.run_folder import Run, save_run
from rad_bench.store.sweep_folder import planned_runs
from rad_bench.sweep.gather import finish
from rad_bench.sweep.merge import merge
from tests.report.synthetic import write_curves, write_sweep
from tests.sweep.tiny import TINY

pytestmark = pytest.mark.usefixtures("without_plots")


def sweep(folder, seeds):
    """A sweep as it lies on disk, each run with its own frames and learning curve, and nothing of them gathered."""
    write_sweep(folder, seeds=seeds, base={"none": 12.0, "lstm": 18.0}, horizon=6, episodes=3)
    write_curves(folder, {10: {"none": -1.0, "lstm": -2.0}, 30: {}})
    for name in ("frames", "curve"):
        table = pd.read_parquet(folder / f"{name.rstrip('s')}s.parquet")
        for path in (folder / "runs").iterdir():
            table[table["run"] == path.name].to_parquet(path / f"{name}.parquet")
    (folder / "curves.parquet").unlink()
    for path in (folder / "runs").iterdir():
        label, _, seed = path.name.partition("-seed")
        config = RunConfig.model_validate({"memory": label, "seed": int(seed), "evaluation": {"at": [10]}})
        save_run(Run(path.name, label, {}, config, "0" * 64), path)
    return folder


def curves_of(folder):
    return pd.read_parquet(folder / "curves.parquet").groupby(["run", "step"]).size().to_dict()


def test_a_sweep_gathers_the_curves_of_its_runs_and_drops_them_with_the_last(tmp_path):
    folder = sweep(tmp_path / "sweep", (0, 1))
    finish(folder, planned_runs(folder))
    runs = [f"{block}-seed{seed}" for block in ("none", "lstm") for seed in (0, 1)]
    assert curves_of(folder) == {(run, step): 2 * 3 * 6 for run in runs for step in (10, 30)}
    assert "Does the order still change" in (folder / "report" / "index.html").read_text()
    for path in folder.glob("runs/*/curve.parquet"):
        path.unlink()
    finish(folder, planned_runs(folder))
    assert not (folder / "curves.parquet").exists()
    assert "Does the order still change" not in (folder / "report" / "index.html").read_text()


@pytest.mark.parametrize("spoil", [lambda path: path.write_bytes(b"PAR1"), lambda path: foreign(path)])
def test_a_run_with_a_spoilt_curve_is_named_and_the_others_are_reported(tmp_path, spoil):
    folder = sweep(tmp_path / "sweep", (0, 1))
    spoil(folder / "runs" / "lstm-seed1" / "curve.parquet")
    outcome = finish(folder, planned_runs(folder))
    assert [(status.name, status.state) for status in outcome.unfinished] == [("lstm-seed1", "unreadable")]
    assert "lstm-seed1/curve.parquet: " in outcome.unfinished[0].detail
    assert "lstm-seed1" not in {run for run, _ in curves_of(folder)}


def foreign(path):
    pd.read_parquet(path).assign(run="lstm-seed0").to_parquet(path)


def test_merged_sweeps_keep_their_curves(tmp_path):
    parts = [sweep(tmp_path / f"part{seed}", (seed,)) for seed in (0, 1)]
    for part in parts:
        finish(part, planned_runs(part))
    merge(tmp_path / "whole", parts)
    assert {run for run, _ in curves_of(tmp_path / "whole")} == {
        f"{block}-seed{seed}" for block in ("none", "lstm") for seed in (0, 1)
    }


def test_a_step_beyond_the_end_is_refused_before_anything_is_launched(tmp_path, monkeypatch):
    (tmp_path / "tiny.yaml").write_text(TINY)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli, ["plan", "tiny.yaml", "--set", "run.evaluation.at=[10, 30]"])
    assert result.exit_code != 0 and "Traceback" not in result.output
    assert "evaluation.at 30 must be less than training.steps 30" in f"{result.output}{result.exception}"
