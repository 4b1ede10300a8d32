"""A video shows the very frames that the evaluation scored, beside the truth, and says what could be known."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from rad_bench.errors import UserError
from rad_bench.look.film import COLOURS, draw, film, write_video
from rad_bench.look.load import load_trained
from tests.runs import TINY, finished, shaken
from tests.sweep.tiny import run_here

CONTEXT, HORIZON, SIDE = TINY["evaluation"]["context"], TINY["evaluation"]["horizon"], TINY["data"]["size"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(tmp_path_factory.mktemp("runs") / "lstm-seed0")


def strip(run: Path, name: str) -> list[np.ndarray]:
    """The frames [h, w, 3] of a strip of a horizon that it holds whole."""
    image = np.asarray(Image.open(run / "strips" / f"{name}.png"))
    return [image[:, left : left + SIDE] for left in range(0, image.shape[1], SIDE + 1)]


@pytest.mark.parametrize("task", ["continuation", "retrieval"])
def test_frames_equal_those_of_the_runs_own_strips_to_the_bit(run: Path, task: str) -> None:
    trained = load_trained(run)
    episodes = json.loads((run / "result.json").read_text())["strips"][task]["episodes"]
    assert film([trained], task, ["keep"], []).episodes == episodes[:1]
    assert len(episodes) == 2
    kept = [strip(run, f"{task}-keep-{episode}") for episode in episodes]
    for intervention in ("keep", "reset", "swap"):
        made = film([trained], task, [intervention], episodes)
        for b, episode in enumerate(episodes):
            for row, name in zip(made.columns.values(), ("truth", intervention), strict=True):
                expected = strip(run, f"{task}-{name}-{episode}")
                found = row[b, CONTEXT:].permute(0, 2, 3, 1).numpy()
                assert len(found) == len(expected)
                assert all((ours == theirs).all() for ours, theirs in zip(found, expected, strict=True))
            if intervention != "keep":  # the strips could show that an intervention was forgotten
                other = strip(run, f"{task}-{intervention}-{episode}")
                assert any((a != b).any() for a, b in zip(kept[b], other, strict=True))


def test_context_and_kinds_are_marked_as_the_evaluation_has_them(run: Path) -> None:
    made = film([load_trained(run)], None, ["keep"], [1, 3])
    frames = pd.read_parquet(run / "frames.parquet")
    for b, episode in enumerate([1, 3]):
        rows = frames[
            (frames.task == "continuation")
            & (frames.intervention == "keep")
            & (frames.episode == episode)
            & (frames.block == "lstm")
        ].sort_values("frame")
        assert made.kinds[b] == ["context"] * CONTEXT + rows.kind.tolist()
        np.testing.assert_array_equal(made.gaps[b][CONTEXT:], rows.gap)
    truth, generated = made.columns.values()
    assert torch.equal(truth[:, :CONTEXT], generated[:, :CONTEXT])


def test_pictures_hold_the_frames_enlarged_and_framed_by_what_could_be_known(run: Path) -> None:
    made = film([load_trained(run)], None, ["keep"], [1, 3])
    pictures = draw(made)
    assert len(pictures) == CONTEXT + HORIZON
    for t in (0, CONTEXT, CONTEXT + HORIZON - 1):
        picture, found = np.asarray(pictures[t]), 0
        for frames in made.columns.values():
            for b in range(2):
                tile = frames[b, t].permute(1, 2, 0).numpy().repeat(8, 0).repeat(8, 1)
                windows = np.lib.stride_tricks.sliding_window_view(picture[:, :, 0], tile.shape[:2])
                corners = np.argwhere((windows[:, :, ::30, ::30] == tile[::30, ::30, 0]).all((2, 3)))
                for y, x in corners:
                    if (picture[y : y + 128, x : x + 128] == tile).all():
                        found += 1
                        edge = "#" + bytes(picture[y - 2, x - 2]).hex().upper()
                        assert edge == COLOURS[made.kinds[b][t]]
                        break
        assert found == 4


@pytest.mark.parametrize("suffix", [".gif", ".mp4"])
def test_both_formats_hold_every_frame(run: Path, tmp_path: Path, suffix: str) -> None:
    made = film([load_trained(run)], None, ["swap"], [])
    pictures, path = draw(made), tmp_path / f"film{suffix}"
    write_video(pictures, path, 5)
    if suffix == ".gif":
        image = Image.open(path)
        found = []
        for number in range(image.n_frames):
            image.seek(number)
            found.append(np.asarray(image.convert("RGB")))
        assert image.info["duration"] == 200
    else:
        av = pytest.importorskip("av")
        with av.open(str(path)) as container:
            found = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(found) == len(pictures)
    for ours, theirs in zip(found, pictures, strict=True):
        assert np.abs(ours.astype(int) - np.asarray(theirs).astype(int)).mean() < 6


def test_several_runs_stand_beside_one_truth_and_must_share_it(run: Path) -> None:
    trained = load_trained(run)
    made = film([trained, shaken(memory="none"), shaken(memory="none")], None, ["keep"], [2])
    assert list(made.columns) == ["truth", "lstm", "none, seed 0", "none, seed 0'"]
    assert not torch.equal(made.columns["lstm"], made.columns["none, seed 0"])
    for other in ({"data": {"headings": 12}}, {"evaluation": {"horizon": 13}}):
        with pytest.raises(UserError, match="different episodes"):
            film([trained, shaken(**other)], None, ["keep"], [2])


def test_several_interventions_are_columns_but_not_of_a_run_without_memory(run: Path) -> None:
    trained, without = load_trained(run), shaken(memory="none")
    made = film([trained, without], None, ["keep", "swap"], [2])
    assert list(made.columns) == ["truth", "lstm", "none", "lstm, another episode's memory"]
    alone = film([trained], None, ["swap"], [2])
    assert torch.equal(made.columns["lstm, another episode's memory"], list(alone.columns.values())[1])
    assert not torch.equal(made.columns["lstm"], made.columns["lstm, another episode's memory"])


def test_the_command_writes_into_the_runs_folder(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "lstm-seed0")
    told = run_here("rollout", copy, "--task", "retrieval", "--episode", "2", cwd=tmp_path).stdout
    path = copy / "rollout-retrieval-keep-2.gif"
    assert told.startswith(str(path))
    assert Image.open(path).n_frames == CONTEXT + CONTEXT - 1


def test_mistakes_are_told_in_a_paragraph(run: Path, tmp_path: Path) -> None:
    trained = load_trained(run)
    with pytest.raises(UserError, match="numbered from 0 to 3"):
        film([trained], None, ["keep"], [4])
    with pytest.raises(UserError, match="did you mean 'retrieval'"):
        film([trained], "retrival", ["keep"], [])
    with pytest.raises(UserError, match="was not evaluated with this intervention"):
        film([shaken(evaluation={"interventions": ("keep", "reset")})], None, ["swap"], [0])
    with pytest.raises(UserError, match="unknown video format"):
        write_video([], tmp_path / "film.avi", 5)
    pictures = draw(film([trained], None, ["keep"], []))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        write_video(pictures, tmp_path / "file" / "film.gif", 5)
    sweep = tmp_path / "sweep"
    copy = shutil.copytree(run, sweep / "runs" / "lstm-seed0")
    with pytest.raises(UserError, match=r"a finished run of this sweep is .*lstm-seed0"):
        load_trained(sweep)
    (copy / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_trained(copy)
    config = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(config.replace("fov: 60.0", "fov: 70.0"))
    with pytest.raises(UserError, match=r"the data that its config\.yaml names has changed"):
        load_trained(copy)
    result = json.loads((copy / "result.json").read_text())
    (copy / "result.json").write_text(json.dumps({**result, "memory": 3}))
    with pytest.raises(UserError, match="not the result of a run"):
        load_trained(copy)
    (copy / "result.json").unlink()
    with pytest.raises(UserError, match="not finished"):
        load_trained(copy)
