"""The answer says what the statistics carry, and no more."""

import json
import re

import pandas as pd
import pytest

from rad_bench.report.ablation import ablation_rows
from rad_bench.report.answer import answer
from rad_bench.report.reading import read_sweep
from rad_bench.report.summary import summarise
from tests.report.synthetic import write_sweep


def parts(folder):
    sweep = read_sweep(folder)
    told = answer(sweep, *summarise(sweep), ablation_rows(sweep))
    return {question: " ".join(sentences) for question, sentences in told}


def test_the_three_parts_of_the_question_are_answered(tmp_path):
    told = parts(write_sweep(tmp_path, swap_loss={"none": 0.0, "lstm": 6.0, "mamba2": 7.0}))
    assert list(told) == ["Which memory?", "How sure?", "At what cost?"]
    which, sure, cost = told.values()
    assert "On retrieval, mamba2 is best: 21.0 [" in which
    assert re.search(r"mamba2 is 9\.0 \[.*?\] dB above none \(distinguishable, p ", which)
    assert "last true frame gives 11.0 dB." in which
    assert re.search(r"mamba2 leads lstm by 3\.\d \[.*?\] dB \(distinguishable, p ", sure)
    assert "costs mamba2 and lstm 6.0 to 7.0 dB" in sure
    assert "mamba2: 1,000 parameters, a state of 51.2 kB (grows); a frame takes 1.22 times the FLOPs of none." in cost
    assert "none: 0 parameters, no state." in cost


def test_an_answer_is_a_few_sentences(tmp_path):
    base = {"none": 12.0, "copy-last": 11.0} | {f"memory{n:02}": 15.0 for n in range(12)}
    told = parts(write_sweep(tmp_path, base=base, swap_loss=dict.fromkeys(base, 3.0), episodes=2, horizon=4))
    assert len(told["Which memory?"]) < 800 and "and 5 more" in told["Which memory?"]


def test_what_memory_gives_is_its_difference_to_none_and_not_what_a_swap_loses(tmp_path):
    swap_loss = {"none": 0.0, "lstm": 9.0}
    told = parts(write_sweep(tmp_path / "with", base={"none": 12.0, "lstm": 18.0}, swap_loss=swap_loss))
    assert re.search(r"costs lstm (8\.9 to )?9\.\d dB, so memory is used", told["How sure?"])
    assert re.search(r"lstm is (6\.0|5\.9) \[.*?\] dB above none", told["Which memory?"])
    told = parts(write_sweep(tmp_path / "without", base={"lstm": 18.0}, swap_loss=swap_loss))
    assert "above" not in told["Which memory?"]


def test_the_best_memory_of_constant_size_is_named_where_the_leader_grows(tmp_path):
    folder = write_sweep(tmp_path, base={"none": 12.0, "lstm": 18.0, "mamba2": 20.0, "attention": 24.0},
                         swap_loss={"none": 0.0, "lstm": 5.0, "mamba2": 5.0, "attention": 5.0})  # fmt: skip
    for path in (*folder.glob("runs/lstm-*/result.json"), *folder.glob("runs/mamba2-*/result.json")):
        path.write_text(json.dumps({**json.loads(path.read_text()), "state_bytes": {"1": 512, "100": 512}}))
    told = parts(folder)
    assert "On retrieval, attention is best: 24.0 [" in told["Which memory?"]
    assert "Of the memories of constant size, mamba2 is best: 20.0 [" in told["Which memory?"]
    assert "attention: " in told["At what cost?"] and "mamba2: " in told["At what cost?"]


def test_blocks_that_do_worse_than_standing_still_are_named(tmp_path):
    base = {"none": 12.0, "lstm": 18.0, "mamba2": 21.0, "copy-last": 15.0}
    told = parts(write_sweep(tmp_path, base=base))
    assert "last true frame gives 15.0 dB, more than none." in told["Which memory?"]


def test_blocks_that_cannot_be_told_apart_are_never_called_best(tmp_path):
    told = parts(write_sweep(tmp_path, base={"none": 12.0, "lstm": 20.0, "mamba2": 20.0}, swap_loss=dict.fromkeys(
        ("none", "lstm", "mamba2"), 5.0)))  # fmt: skip
    assert re.search(
        "On retrieval, (lstm|mamba2) is highest, not distinguishable from (lstm|mamba2):", told["Which memory?"]
    )
    assert "(not distinguishable, p = " in told["How sure?"] and "smallest detectable difference" in told["How sure?"]
    assert "is best" not in told["Which memory?"]


def test_a_leader_that_ignores_its_memory_is_said_to(tmp_path):
    told = parts(write_sweep(tmp_path))  # mamba2 is highest and loses nothing by a swap
    assert "But mamba2 is not shown to use its memory." in told["Which memory?"]
    assert "Not shown to use their memory: mamba2." in told["How sure?"]


def test_a_leader_is_set_against_as_many_parameters_without_memory(tmp_path):
    base = {"none": 12.0, "feedforward": 12.0, "lstm": 18.0}
    told = parts(write_sweep(tmp_path, base=base, swap_loss={"none": 0.0, "feedforward": 0.0, "lstm": 6.0}))
    assert re.search(r"6\.\d \[.*?\] dB above feedforward \(distinguishable", told["Which memory?"])


def test_controls_that_a_sweep_lacks_are_named_with_what_cannot_be_said(tmp_path):
    told = parts(write_sweep(tmp_path / "some", base={"none": 12.0, "lstm": 18.0}))["How sure?"]
    assert "Controls missing in this sweep: feedforward and attention." in told
    assert "nor how far below full attention a memory stays." in told and "what memory gives over" not in told
    base = dict.fromkeys(("none / window=2", "feedforward / window=2", "attention / window=2"), 12.0)
    told = parts(write_sweep(tmp_path / "all", base=base, swap_loss=dict.fromkeys(base, 0.0)))["How sure?"]
    assert "lacks" not in told


def test_intervals_are_said_to_hold_for_these_episodes_and_this_noise(tmp_path):
    told = parts(write_sweep(tmp_path))["How sure?"]
    assert "intervals are over trainings, for these 8 episodes and this sampling noise." in told
    assert "these 8 episodes and this sampling noise; other worlds" in told


def test_one_seed_ranks_nothing(tmp_path):
    told = parts(write_sweep(tmp_path, seeds=(0,)))
    assert "is highest" in told["Which memory?"] and "no ranking" in told["Which memory?"]
    assert "is best" not in str(told) and "p =" not in str(told) and "distinguishable" not in str(told)
    assert "evaluation noise only" in told["How sure?"]


def test_none_on_top_means_that_no_memory_is_shown_to_help(tmp_path):
    told = parts(write_sweep(tmp_path, base={"none": 18.0, "lstm": 18.0}, swap_loss={"none": 0.0, "lstm": 0.0}))
    assert "no memory is shown to do better than none" in told["Which memory?"]


def test_missing_runs_and_blocks_with_fewer_seeds_are_named_in_the_answer(tmp_path):
    folder = write_sweep(tmp_path, failed=["ttt-seed0"])
    frames = pd.read_parquet(folder / "frames.parquet")
    frames[~frames["run"].isin(["lstm-seed1", "lstm-seed2"])].to_parquet(folder / "frames.parquet")
    told = parts(folder)["How sure?"]
    assert "3 of 10 planned runs are missing" in told
    assert "Fewer seeds than the other blocks: lstm (1)" in told


@pytest.fixture
def axes(tmp_path):
    base = {
        f"{memory} / window={w}": 12.0 + (6.0 if memory == "lstm" else 0.0)
        for memory in ("none", "lstm")
        for w in (1, 3)
    }
    folder = write_sweep(tmp_path, base=base, swap_loss={label: label.startswith("lstm") * 5.0 for label in base})
    for path in folder.glob("runs/*/result.json"):
        result = json.loads(path.read_text())
        memory, _, window = result["block"].partition(" / window=")
        path.write_text(json.dumps({**result, "axes": {"memory": memory, "trunk.window": int(window), "seed": 0}}))
    return folder


def test_a_sweep_over_axes_is_answered_axis_by_axis(axes):
    told = parts(axes)["Which memory?"]
    assert re.search("axis memory, against none: lstm gives [+].* dB, distinguishable at 2 of 2 settings", told)
    assert re.search("axis trunk.window, against 1: 3 gives .* dB, distinguishable at 0 of 2 settings", told)


def test_sizes_of_blocks_are_axes_of_their_own(tmp_path):
    base = {"ttt(head_dim=8)": 16.0, "ttt(head_dim=16)": 18.0, "lstm(hidden=8)": 14.0, "lstm(hidden=32)": 14.0}
    folder = write_sweep(tmp_path, base=base, swap_loss=dict.fromkeys(base, 3.0))
    for path in folder.glob("runs/*/result.json"):
        result = json.loads(path.read_text())
        name, _, option = result["block"].removesuffix(")").partition("(")
        key, _, value = option.partition("=")
        axes = {"memory": {"name": name, key: int(value)}, "seed": result["seed"]}
        path.write_text(json.dumps({**result, "axes": axes}))
    told = parts(folder)["Which memory?"]
    assert "axis ttt.head_dim, against 8: 16 gives +2" in told or "axis ttt.head_dim, against 16: 8 gives -2" in told
    assert "axis lstm.hidden" in told and "distinguishable at 0 of 1 settings" in told


def test_models_of_other_frames_are_not_compared_and_it_is_said(tmp_path):
    folder = write_sweep(tmp_path)
    frames = pd.read_parquet(folder / "frames.parquet").assign(truth=3)
    longer = (frames["block"] == "lstm") & (frames["task"] == "retrieval") & (frames["frame"] >= 6)
    shorter = (frames["task"] == "retrieval") & (frames["frame"] >= 6)
    frames.loc[(frames["block"] == "lstm") & (frames["task"] == "continuation"), "truth"] = 4
    frames[longer | ~shorter].to_parquet(folder / "frames.parquet")
    told = " ".join(parts(folder).values())
    assert "On continuation not all models generated the same frames" in told
    assert "On retrieval 23% of the generated frames are left out" in told
    assert "On continuation, mamba2 and lstm have no seed or no frame in common and are not compared." in told


def test_revisits_of_few_episodes_are_named(tmp_path):
    folder = write_sweep(tmp_path)
    assert "too few" not in parts(folder)["How sure?"]
    frames = pd.read_parquet(folder / "frames.parquet")
    few = (frames["task"] == "retrieval") & (frames["kind"] == "revisit") & (frames["episode"] >= 4)
    frames.assign(kind=frames["kind"].mask(few, "recent")).to_parquet(folder / "frames.parquet")
    assert (
        "On retrieval there are only 12 revisit frames, of 4 episodes: too few for a firm answer."
        in parts(folder)["How sure?"]
    )
