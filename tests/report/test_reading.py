"""Files of runs that are spoilt or half written: told in a paragraph, never a traceback."""

import json
import re
import sys

import numpy as np
import pandas as pd
import pytest

from rad_bench.cli import main
from rad_bench.config import RunConfig
from rad_bench.errors import UserError
from rad_bench.report.curves import loss_curves
from rad_bench.report.evidence import evidence
from rad_bench.report.intervals import compare_pairs, episode_means
from rad_bench.report.reading import (
    form_name,
    read_frames,
    read_losses,
    read_run,
    read_sweep,
    shared_frames,
)
from rad_bench.store.run_folder import Run, save_run
from tests.report.synthetic import write_sweep


@pytest.fixture
def folder(tmp_path):
    """A sweep as it lies on disk, each run with its own frames."""
    folder = write_sweep(tmp_path / "sweep", base={"none": 12.0, "lstm": 18.0}, horizon=6, episodes=3)
    frames = pd.read_parquet(folder / "frames.parquet")
    for path in (folder / "runs").iterdir():
        save_run(Run(path.name, path.name, {}, RunConfig(), "0" * 64), path)
        frames[frames["run"] == path.name].to_parquet(path / "frames.parquet")
    return folder


SPOILT = {
    "result.json": [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"block": 3}'],
    "frames.parquet": [b"", b"PAR1", b"PAR1" + b"\0" * 100 + b"PAR1"],
}


@pytest.mark.parametrize(("name", "content"), [(name, content) for name, all_ in SPOILT.items() for content in all_])
def test_a_run_with_a_spoilt_file_is_refused_by_that_file(folder, name, content):
    (folder / "runs" / "lstm-seed1" / name).write_bytes(content)
    with pytest.raises(UserError, match=f"lstm-seed1/{name}: "):
        read_run(folder / "runs" / "lstm-seed1")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("name", ["result.json", "frames.parquet"])
def test_half_a_file_is_refused(folder, name, share):
    spoilt = folder / "runs" / "lstm-seed1" / name
    spoilt.write_bytes(spoilt.read_bytes()[: int(spoilt.stat().st_size * share)])
    with pytest.raises(UserError, match=f"lstm-seed1/{name}: "):
        read_run(spoilt.parent)


@pytest.mark.parametrize(
    "change",
    [lambda f: f.drop(columns="kind"), lambda f: f.assign(psnr="loud"), lambda f: f.assign(block=None), lambda f: f[:0],
     lambda f: f.assign(seed=f["seed"].astype(float)), lambda f: f.assign(run="another")],
)  # fmt: skip
def test_frames_of_another_shape_are_refused(folder, change):
    path = folder / "runs" / "lstm-seed1" / "frames.parquet"
    change(pd.read_parquet(path)).to_parquet(path)
    with pytest.raises(
        UserError, match=r"lstm-seed1/frames\.parquet: (is not a table of frames|contains frames of another)"
    ):
        read_run(path.parent)


def test_spoilt_runs_are_among_the_missing_and_the_others_are_reported(folder, monkeypatch, capsys):
    (folder / "runs" / "lstm-seed1" / "result.json").write_bytes(b'{"block": ')
    (folder / "runs" / "none-seed2" / "frames.parquet").write_bytes(b"PAR1")
    (folder / "runs" / "lstm-seed0" / "log.jsonl").write_bytes(b"\xff\n[]\n3\n")
    monkeypatch.setattr(sys, "argv", ["rad-bench", "report", str(folder)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    told = capsys.readouterr().err.splitlines()
    page = (folder / "report" / "index.html").read_text()
    for run, name in {"lstm-seed1": "result.json", "none-seed2": "frames.parquet"}.items():
        (line,) = [line for line in told if line.startswith(run)]
        assert "unreadable" in line and f"{run}/{name}" in line
        assert line.endswith(f"To run it again, delete {folder / 'runs' / run}.")
        assert f"{run}/{name}" in page
    assert re.fullmatch(r"2 of \d runs are not done\.", told[-1])  # a sweep takes them as done, and tries neither again
    monkeypatch.setattr(sys, "argv", ["rad-bench", "status", str(folder)])
    main()
    assert capsys.readouterr().out.splitlines()[-1].endswith("2 unreadable")
    assert "2 planned runs are missing" in page
    assert "lstm-seed0/log.jsonl: 3 of 3 lines cannot be read" in page
    summary = pd.read_csv(folder / "summary.csv").set_index(["block", "task"])["seeds"]
    assert summary["lstm", "retrieval"] == summary["none", "retrieval"] == 2


@pytest.mark.parametrize(
    "line", ["", "\udcff", "[]", "3", "null", '{"phase": "training"}', '{"phase": "training", "step": "x", "loss": 1}']
)
def test_a_line_that_is_no_record_is_counted_and_not_fatal(tmp_path, line):
    log = tmp_path / "log.jsonl"
    log.write_text(line + '\n{"phase": "training", "step": 10, "loss": 0.5}\n', errors="surrogateescape")
    losses, told = read_losses(log)
    assert losses.to_dict() == {10: 0.5} and "1 of 2 lines cannot be read" in told


def test_half_a_line_of_a_log_leaves_the_others(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text('{"phase": "training", "step": 10, "loss": 0.5}\n{"phase": "evaluation", "done": 1}\n{"phase": "tr')
    losses, told = read_losses(log)
    assert losses.to_dict() == {10: 0.5} and told.endswith("1 of 3 lines cannot be read")
    log.unlink()
    assert read_losses(log)[0].empty and "No such file" in read_losses(log)[1]


def test_a_run_that_took_weights_over_says_so_and_shows_the_loss_of_their_training(folder):
    path = folder / "runs" / "lstm-seed1" / "result.json"
    result = json.loads(path.read_text())
    path.write_text(json.dumps({**result, "training": {**result["training"], "by": "lstm-before"}}))
    (path.parent / "log.jsonl").write_text("")
    (folder / "runs" / "lstm-before").mkdir()
    (folder / "runs" / "lstm-before" / "log.jsonl").write_text('{"phase": "training", "step": 7, "loss": 0.5}\n')
    sweep = read_sweep(folder)
    assert dict(evidence(sweep))["reused weights"] == "1 of 6 runs did not train: lstm-seed1 from lstm-before"
    assert [curve.x for curve in loss_curves(sweep) if curve.label == "lstm"].count([7]) == 1
    (folder / "runs" / "lstm-before" / "log.jsonl").unlink()
    assert len(loss_curves(read_sweep(folder))) == 5  # and no line of its own, where that log is gone


def test_a_folder_of_frames_names_what_is_missing(folder):
    frames = pd.read_parquet(folder / "frames.parquet").drop(columns=["mse", "gap"])
    frames.to_parquet(folder / "frames.parquet")
    with pytest.raises(UserError, match=r"frames\.parquet: is not a table of frames: it has no gap, mse"):
        read_frames(folder / "frames.parquet")


def test_forms_of_a_block_are_told_by_options_and_axes():
    assert form_name("ttt(inner=mlp) / window=2") == "inner=mlp, window=2"
    assert form_name("mamba2 / window=2 / clip=24") == "window=2, clip=24"
    assert form_name("lstm") == ""


def frames_of(block, task, frames, truth=5, kind="revisit"):
    rows = [(block, 0, task, "keep", e, f, kind, truth + 10 * e + f, 20.0) for e in range(2) for f in frames]
    return pd.DataFrame(
        rows, columns=["block", "seed", "task", "intervention", "episode", "frame", "kind", "truth", "psnr"]
    )


def test_models_are_compared_over_the_frames_that_all_have():
    frames = pd.concat([
        frames_of("lstm", "retrieval", range(19)), frames_of("ttt", "retrieval", range(16)),
        frames_of("copy-last", "retrieval", range(19)),
        frames_of("lstm", "continuation", range(8)), frames_of("ttt", "continuation", range(8)),
    ])  # fmt: skip
    kept, left = shared_frames(frames)
    sizes = kept.groupby(["task", "block"]).size()
    assert set(sizes["retrieval"]) == {2 * 16} and set(sizes["continuation"]) == {2 * 8}
    assert left == {"retrieval": pytest.approx(1 - 96 / 108), "continuation": 0.0}
    other_kinds = pd.concat([
        frames_of("lstm", "retrieval", range(4)),
        frames_of("ttt", "retrieval", [0], kind="recent"), frames_of("ttt", "retrieval", range(1, 4)),
    ])  # fmt: skip
    assert set(shared_frames(other_kinds)[0]["frame"]) == {1, 2, 3}


def test_models_of_other_episodes_stand_for_themselves_and_are_not_paired():
    frames = pd.concat([frames_of("lstm", "retrieval", range(4)), frames_of("ttt", "retrieval", range(4), truth=7)])
    kept, left = shared_frames(frames)
    assert len(kept) == len(frames) and left == {"retrieval": 1.0}
    values = {block: episode_means(part) for block, part in kept.groupby("block")}
    (pair,) = compare_pairs(values)
    assert np.isnan(pair.difference.mean) and np.isnan(pair.p) and not pair.difference.seeds
