"""Whether a sweep needs a memory is said before it is launched; the shipped sweeps all do."""

import warnings

import pytest

from rad_bench.sweep.grid import plan_runs
from rad_bench.sweep.load import load_sweep
from rad_bench.sweep.plan import FEWEST_EPISODES, need_table, need_warnings, plan_sweep
from tests.sweep.tiny import ROOT, run_here

TURNING = """
name: turning
run:
  data: {name: rooms, size: 16, headings: 24, panels: 4}
  trunk: {width: 16, depth: 1, patch: 8, window: 2}
  training: {steps: 2, batch: 4, frames: 12, loss_from: 4}
  evaluation: {episodes: 8, context: 26, horizon: 40, probe: 0, batch: 8}
grid: {memory: [none], seed: [0]}
"""


def planned(folder, *overrides):
    (folder / "turning.yaml").write_text(TURNING)
    return plan_sweep(plan_runs(load_sweep(folder / "turning.yaml", overrides)), folder / "results")


def test_training_that_needs_no_memory_is_called_that_before_anything_is_launched(tmp_path):
    """Twelve headings of a turn of twenty-four show nothing twice; on the way back they do."""
    (note,) = need_warnings(planned(tmp_path))
    assert note.startswith("no trained frame needs a memory")
    assert need_warnings(planned(tmp_path, "run.training.return_share=1.0")) == []
    assert (
        "note: no trained frame needs a memory" in run_here("plan", "turning.yaml", "--no-probe", cwd=tmp_path).stdout
    )


def test_a_task_that_scores_revisits_in_few_episodes_is_named(tmp_path):
    notes = need_warnings(planned(tmp_path, "run.training.return_share=1.0", "run.evaluation.episodes=4"))
    assert [note.split(":")[0] for note in notes] == ["continuation", "retrieval"]
    assert f"fewer than {FEWEST_EPISODES};" in notes[0]


def test_models_that_need_the_same_share_one_row(tmp_path):
    assert need_table(planned(tmp_path, "grid.memory=[none, lstm]")).row_count == 3
    assert need_table(planned(tmp_path, "grid.memory=[none]", "grid.trunk.window=[1, 2]")).row_count == 6


def shipped():
    return [
        path for path in sorted((ROOT / "sweeps").rglob("*.yaml")) if load_sweep(path).run["data"]["name"] == "rooms"
    ]


@pytest.mark.slow
@pytest.mark.parametrize("path", shipped(), ids=lambda path: path.stem)
def test_a_shipped_sweep_trains_and_scores_what_needs_a_memory(path, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        runs = plan_runs(load_sweep(path, ["grid.seed=[0]"]))
        assert need_warnings(plan_sweep(runs, tmp_path)) == []
