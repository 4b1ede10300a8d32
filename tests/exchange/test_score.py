import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rad_bench.errors import UserError
from rad_bench.exchange.score import parse_models
from rad_bench.exchange.suspects import MOST_SHIFT, SHIFT_GAIN
from tests.exchange.outside import record, tasks, truth, write
from tests.sweep.tiny import ROOT, TINY, run_here

pytestmark = pytest.mark.usefixtures("without_plots")

LONG = TINY.replace("context: 9, horizon: 8", "context: 9, horizon: 24, tasks: [continuation]")
EPISODES = 4


@pytest.fixture
def asked(once):
    """Tasks of 24 frames to generate, which are to be read only."""
    return once("asked", lambda folder: tasks(folder, LONG)) / "tasks"


@pytest.fixture
def right(asked):
    """The true frames of the only task, uint8 [B, H, height, width, 3]."""
    return truth(asked)["continuation"]


def noisy(frames, seed=0, levels=30):
    noise = np.random.default_rng(seed).normal(0, levels, frames.shape)
    return (frames + noise).clip(0, 255).astype(np.uint8)


def score(asked, folder, frames, *options, expect=0, **forms):
    where = write(folder / "mine", {"continuation": frames}, **forms)
    return run_here("score", asked, f"--rollouts=mine={where}", *options, "--out=scored", cwd=folder, expect=expect)


def test_frames_as_arrays_pictures_and_lossless_video_get_the_same_scores(asked, right, tmp_path):
    frames, digests = noisy(right), set()
    for form in ("npz", "png", "video"):
        folder = tmp_path / form
        folder.mkdir()
        if form == "video":
            av = pytest.importorskip("av")
            where = folder / "mine" / "continuation"
            where.mkdir(parents=True)
            for episode, video in enumerate(frames):
                with av.open(str(where / f"{episode}.MKV"), "w", format="matroska") as file:
                    stream = file.add_stream("ffv1", rate=10)
                    stream.height, stream.width, stream.pix_fmt = *video.shape[1:3], "bgr0"
                    for picture in video:
                        file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
                    file.mux(stream.encode())
            told = run_here("score", asked, f"--rollouts=mine={folder / 'mine'}", "--out=scored", cwd=folder)
            assert "note: mine, seed 0: continuation: read from a video" in told.stderr
        else:
            score(asked, folder, frames, form=form)
        digests.add((folder / "scored" / "summary.csv").read_text())
    assert len(digests) == 1


def break_one(kind, where, frames):
    """Make one of the four videos wrong in a way that cannot be scored."""
    target = where / "continuation" / "002.npz"
    if kind == "missing":
        target.unlink()
    elif kind == "no number":
        target.rename(target.with_name("episode_2.npz"))
    elif kind == "no folder":
        (where / "continuation").rename(where / "other")
    elif kind == "short":
        np.savez(target, frames=frames[2, :-3])
    elif kind == "damaged":
        target.write_bytes(target.read_bytes()[:500])
    elif kind == "not frames":
        np.savez(target, frames=frames[2, ..., 0])
    elif kind == "in [-1, 1]":
        np.savez(target, frames=frames[2] / 127.5 - 1)
    elif kind == "other array":
        np.savez(target, video=frames[2], more=frames[2])
    elif kind == "twice":
        np.savez(where / "continuation" / "2.npz", frames=frames[2])
    else:
        target.unlink()
        target.with_suffix("").mkdir()
        for number in set(range(24)) - {7}:
            Image.fromarray(frames[2, number]).save(target.with_suffix("") / f"frame_{number}.png")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing", "continuation/002: is missing"),
        ("no number", "continuation/002: is missing; what is episode_2.npz, which has no number as its name?"),
        ("no folder", "mine: continuation: all episodes are missing, as there is no folder of this name. Every"),
        ("short", "continuation/002: 002.npz has 21 frames, and 24 were asked for"),
        ("damaged", "continuation/002: "),
        ("not frames", "holds uint8 (24, 16, 16), should be"),
        ("in [-1, 1]", "to 0.882353, should be uint8, or floats from 0 to 1"),
        ("other array", "has no array frames, only video, more"),
        ("twice", "is there twice: 002.npz, 2.npz"),
        ("gap", "002 has no picture 7, but 23"),
    ],
)
def test_what_cannot_be_scored_is_named_and_nothing_is_scored(asked, right, tmp_path, kind, words):
    where = write(tmp_path / "mine", {"continuation": right})
    break_one(kind, where, right)
    told = run_here("score", asked, f"--rollouts=mine={where}", cwd=tmp_path, expect=2).stderr
    assert "nothing was scored" in told and words in told, told
    assert "continuation/001" not in told and not (tmp_path / "results").exists()


def test_all_problems_of_all_models_are_named_at_once(asked, right, tmp_path):
    where = write(tmp_path / "mine", {"continuation": right[:2, :5]})
    options = [f"--rollouts=mine={where}", f"--rollouts=yours={tmp_path / 'nowhere'}"]
    told = run_here("score", asked, *options, cwd=tmp_path, expect=2).stderr
    assert told.count("has 5 frames, and 24 were asked for") == 2 and told.count("is missing") == 2
    assert "yours, seed 0" in told and "is not a folder" in told


def test_what_is_changed_before_scoring_is_said(asked, right, tmp_path):
    doubled = right.repeat(2, 2).repeat(2, 3)
    told = score(asked, tmp_path, doubled).stderr
    assert "note: mine, seed 0: continuation: resized from 32 x 32 to 16 x 16 pixels (4 of 4 videos)" in told
    assert "look at" not in told
    assert record(tmp_path / "scored")["generated"]["notes"] == [
        "continuation: resized from 32 x 32 to 16 x 16 pixels (4 of 4 videos)"
    ]
    page = (tmp_path / "scored" / "report" / "index.html").read_text()
    assert "resized from 32 x 32 to 16 x 16 pixels" in page
    assert "48.13" in page  # doubled and averaged again, the truth is the truth


def test_videos_that_begin_with_the_context_and_floats_are_read(asked, right, tmp_path):
    whole = np.concatenate([np.zeros_like(right[:, :9]), right], 1) / 255
    told = score(asked, tmp_path, whole).stderr
    assert "its first 9 of 33 frames are left out, as the context (4 of 4 videos)" in told
    assert "floats from 0 to 1 were rounded to 8 bits" in told and "look at" not in told


@pytest.mark.parametrize("shift", [1, -1, 3])
def test_shifted_videos_are_named(asked, right, tmp_path, shift):
    told = score(asked, tmp_path, noisy(np.roll(right, shift, 1))).stderr
    frames = f"{abs(shift)} frame{'s' if abs(shift) > 1 else ''} too {'late' if shift > 0 else 'early'}"
    assert f"look at: mine, seed 0: 4 of 4 videos of continuation: come {frames}" in told
    page = (tmp_path / "scored" / "report" / "index.html").read_text()
    assert "Look at these frames before you quote a number" in page and frames in page
    assert MOST_SHIFT >= 3 and SHIFT_GAIN > 0


def test_one_black_a_frozen_a_late_and_a_broken_video_are_named(asked, right, tmp_path):
    frames = noisy(right)
    frames[0] = 0
    frames[1] = frames[1, :1]
    frames[2] = np.roll(frames[2], 2, 0)
    frames[3, 5:7] = 200
    told = score(asked, tmp_path, frames).stderr
    for words in (
        "continuation/000 is black",
        "continuation/001 shows one picture throughout",
        "continuation/002: come 2 frames too late",
        "continuation/003 has 2 blank frames of 24; the first is 5",
    ):
        assert words in told, told
    assert told.count("look at") == 4


def test_frames_in_step_are_not_suspected_however_bad(asked, right, tmp_path):
    other = noisy(right[[2, 3, 0, 1]])  # of another episode
    told = score(asked, tmp_path, other).stderr
    assert "look at" not in told
    assert score(asked, tmp_path, noisy(right, levels=80)).stderr == ""


def test_seeds_pair_up_and_what_was_scored_is_not_scored_again(asked, right, tmp_path):
    options = []
    for name, levels in (("none", 90), ("mine", 30)):
        for seed in (0, 1):
            where = write(tmp_path / f"{name}{seed}", {"continuation": noisy(right, seed, levels)})
            options.append(f"--rollouts={name}={where}")
        swapped = write(tmp_path / f"{name}-swapped", {"continuation": right[[2, 3, 0, 1]]})
        options += [f"--swapped={name}:{seed}={swapped}" for seed in (0, 1)]
    run_here("score", asked, *options, "--out=scored", cwd=tmp_path)
    summary = (tmp_path / "scored" / "summary.csv").read_text().splitlines()
    lines = {line.split(",")[0]: dict(zip(summary[0].split(","), line.split(","), strict=True)) for line in summary[1:]}
    assert lines["mine"]["seeds"] == "2" and float(lines["mine"]["over_none_low"]) > 0
    assert lines["mine"]["verdict"] == "uses its memory" and float(lines["mine"]["swap_drop"]) > 5
    results = {path: path.stat().st_mtime_ns for path in tmp_path.glob("scored/runs/*/*.parquet")}
    assert len(results) == 4
    run_here("score", asked, *options, "--out=scored", cwd=tmp_path)
    assert {path: path.stat().st_mtime_ns for path in results} == results
    page = (tmp_path / "scored" / "report" / "index.html").read_text()
    assert f"rad-bench score {asked}" in page and "No costs are known" in page


def test_verbs_that_need_weights_say_that_there_are_none(asked, right, tmp_path):
    score(asked, tmp_path, noisy(right))
    (run,) = (tmp_path / "scored" / "runs").iterdir()
    told = run_here("rollout", run, cwd=tmp_path, expect=2).stderr
    assert "'mine' was scored from its frames" in told and "no weights" in told
    assert "1 done" in run_here("status", "scored", cwd=tmp_path).stdout
    assert json.loads((run / "result.json").read_text())["need"]["continuation"]["share"] > 0


@pytest.mark.parametrize(
    ("rollouts", "swapped", "words"),
    [
        (["mine"], [], "NAME=FOLDER"),
        (["=x"], [], "NAME=FOLDER"),
        (["a/b=x"], [], "letters"),
        (["copy-last=x"], [], "control"),
        (["mine:1=x", "mine:1=y"], [], "given twice"),
        (["mine=x"], ["mine:1=y"], "no --rollouts of 'mine' with seed 1; did you mean 'mine:0'?"),
    ],
)
def test_models_are_named_plainly(rollouts, swapped, words):
    with pytest.raises(UserError, match=words.replace("?", r"\?")):
        parse_models(rollouts, swapped, Path)


def test_folders_of_one_name_are_seeds_in_their_order():
    models = parse_models(["a=x", "b=y", "a=z", "c:7=w"], ["a:1=s"], Path)
    assert [(m.name, m.seed, str(m.rollouts), m.swapped and str(m.swapped)) for m in models] == [
        ("a", 0, "x", None), ("b", 0, "y", None), ("a", 1, "z", "s"), ("c", 7, "w", None),
    ]  # fmt: skip


def test_swapped_frames_need_partners(asked, right, tmp_path):
    copied = tasks(tmp_path, LONG)
    index = json.loads((copied / "index.json").read_text())
    for question in index["tasks"][0]["episodes"]:
        question["swap_partner"] = None
    (copied / "index.json").write_text(json.dumps(index))
    where = write(tmp_path / "mine", {"continuation": right})
    both = [f"--rollouts=mine={where}", f"--swapped=mine={where}"]
    assert "no swap partners" in run_here("score", copied, *both, cwd=tmp_path, expect=2).stderr


def test_the_example_runs(tmp_path):
    where = tasks(tmp_path)
    command = [sys.executable, str(ROOT / "examples" / "outside_model.py"), str(where), str(tmp_path / "rollouts")]
    subprocess.run(command, check=True, timeout=300)
    own, swapped = (tmp_path / "rollouts" / name for name in ("keep", "swap"))
    options = [f"--rollouts=nearest={own}", f"--swapped=nearest={swapped}"]
    run_here("score", where, *options, "--out=scored", cwd=tmp_path)
    summary = (tmp_path / "scored" / "summary.csv").read_text()
    assert "nearest,retrieval,1,48.13" in summary and "uses its memory (one seed)" in summary
