"""A sweep's folder remembers what was named before results were there; the page says what was changed afterwards."""

import pytest
import yaml

from rad_bench.errors import UserError
from rad_bench.report.peeking import UNCORRECTED, peeking_sentences
from rad_bench.store.history import Request, joined, read_history, updated, written
from rad_bench.store.sweep_folder import read_plan
from rad_bench.sweep.load import load_sweep
from tests.sweep.tiny import TINY, run_here

SHORT = TINY.replace("steps: 30", "steps: 2").replace("checkpoint_every: 5", "warmup: 1")
ONE = SHORT.replace("memory: [none, {name: lstm, hidden: 8}]", "memory: [none]")


class Folder:
    """A sweep's folder in which commands are written down and runs finish, without any computing."""

    def __init__(self, path):
        self.path = path

    def ask(self, *overrides):
        (self.path / "tiny.yaml").write_text(TINY)
        history = updated(load_sweep(self.path / "tiny.yaml", overrides).model_dump(mode="json"), self.path)
        plan = {"planned": [], "history": written(history)}
        (self.path / "sweep.yaml").write_text(yaml.safe_dump(plan))
        assert read_history(read_plan(self.path)) == history
        return peeking_sentences(history)

    def finish(self, *seeds):
        for seed in seeds:
            run = self.path / "runs" / f"none-seed{seed}-0123abcd"
            run.mkdir(parents=True)
            (run / "result.json").touch()


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


def test_seeds_added_after_results_are_said_and_seeds_added_before_are_not(folder):
    assert folder.ask() == []
    assert folder.ask("grid.seed=[0,1,2]") == []
    folder.finish(0, 1, 2)
    assert folder.ask("grid.seed=[0,1,2]") == []
    added, last = folder.ask("grid.seed=[0,1,2,3,4,5]")
    assert added == "Seeds 3 to 5 were added after results of seeds 0 to 2 were there." and last == UNCORRECTED
    folder.finish(3, 4, 5)
    assert folder.ask("grid.seed=[0,1,2,3,4,5]") == [added, UNCORRECTED]


def test_each_look_is_told_and_seeds_that_are_taken_out_too(folder):
    folder.ask()
    folder.finish(0)
    folder.ask("grid.seed=[0,1,2]")
    folder.finish(1, 2)
    assert folder.ask("grid.seed=[1,2,9]") == [
        "Seed 2 was added after results of seed 0 were there.",
        "Seed 9 was added after results of seeds 0 to 2 were there.",
        "Seed 0 was taken out after results of seeds 0 to 2 were there.",
        UNCORRECTED,
    ]


def test_rules_of_evaluation_changed_after_results_are_said(folder):
    folder.ask()
    assert folder.ask("run.evaluation.horizon=6", "run.evaluation.episodes=5") == []
    folder.finish(0, 1)
    assert folder.ask("run.evaluation.horizon=7", "run.evaluation.episodes=5", "run.evaluation.strips=2") == [
        "evaluation.horizon was changed from 6 to 7 after results of seeds 0, 1 were there.", UNCORRECTED,
    ]  # fmt: skip


def test_values_of_the_grid_are_rules_too(folder):
    folder.ask("grid.evaluation.horizon=[6, 8]")
    folder.finish(0)
    (changed, _) = folder.ask("grid={how: {a: {evaluation.horizon: 6}, b: {evaluation.horizon: 9}}, seed: [0, 1]}")
    assert changed.startswith("evaluation.horizon was changed from 6, 8 to 6, 9 after results of seed 0 ")


def test_results_older_than_the_history_leave_it_open_what_was_named(folder):
    folder.finish(0)
    (unknown, _) = folder.ask()
    assert "it is not known whether seed 1 was named before" in unknown


def test_a_merge_of_one_sweeps_parts_tells_nothing_and_of_others_that_it_is_not_known():
    part = [Request([0, 1], {"horizon": [8]}, [])]
    assert peeking_sentences(joined([part, part])) == []
    (unknown, _) = peeking_sentences(joined([part, [Request([0, 1, 2, 3], {"horizon": [8]}, [])]]))
    assert unknown.startswith("Seeds 2, 3 were named in another sweep")


@pytest.mark.parametrize("history", ["all", [1], [{"seeds": ["x"], "rules": {}, "results": []}], [{"seeds": [0]}]])
def test_a_history_that_is_none_is_refused(history):
    with pytest.raises(UserError, match="history"):
        read_history({"history": history})


@pytest.mark.usefixtures("without_plots")
def test_a_sweep_keeps_its_history_and_its_page_tells_it(tmp_path):
    """Seeds that `--only` leaves for later were named all the same; plan says beforehand what the page will say."""
    (tmp_path / "tiny.yaml").write_text(ONE)
    page = tmp_path / "results" / "tiny" / "report" / "index.html"
    assert "seeds: 0, 1, named before any result" in run_here("plan", "tiny.yaml", "--no-probe", cwd=tmp_path).stdout
    for only in ("seed=0", "seed=1"):
        run_here("sweep", "tiny.yaml", "--only", only, "--cluster", "debug", cwd=tmp_path)
    assert "were there" not in page.read_text()
    more = ("tiny.yaml", "--set", "grid.seed=[0,1,2]")
    told = "Seed 2 was added after results of seeds 0, 1 were there."
    assert told in run_here("plan", *more, "--no-probe", cwd=tmp_path).stdout
    run_here("sweep", *more, "--cluster", "debug", cwd=tmp_path)
    run_here("report", "results/tiny", cwd=tmp_path)
    assert told in page.read_text() and "not corrected for such looks" in page.read_text()
    assert "history" not in page.read_text().partition('id="command"')[2]
