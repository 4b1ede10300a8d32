"""Pictures look the same whatever the user has set for matplotlib, and nothing that is set there stops them."""

import os
import subprocess
import sys

import matplotlib
import pandas as pd
import pytest

from rad_bench.report.plots import draw_plots
from rad_bench.report.reading import read_sweep
from rad_bench.report.summary import summarise
from tests.report.synthetic import write_sweep
from tests.sweep.tiny import ROOT

DRAW = """
import pathlib, sys
from rad_bench.report.plots import draw_plots
from rad_bench.report.reading import read_sweep
from rad_bench.report.summary import summarise
sweep = read_sweep(pathlib.Path(sys.argv[1]))
draw_plots(sweep, summarise(sweep)[0], pathlib.Path(sys.argv[2]))
"""
LOUD = b"figure.dpi: 300\nfont.size: 31\nlines.linewidth: 7\nsavefig.bbox: tight\naxes.facecolor: red\n"
SETTINGS = {  # environment, and the file `matplotlibrc` in the working directory
    "a notebook's backend, a style": ({"MPLBACKEND": "module://no_such_package.backend_inline"}, LOUD),
    "no backend, no settings": ({"MPLBACKEND": "x"}, b"no.such: 3\nbackend: x\nfont.size: large and red\nnonsense\n"),
    "what cannot be read": ({"MPLCONFIGDIR": "/dev/null"}, b"# caf\xe9\n"),
    "a style elsewhere": ({"MPLCONFIGDIR": "settings", "MATPLOTLIBRC": "settings"}, None),
}


def pictures(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def drawn(once):
    """A sweep, and its pictures as drawn here: of one task, since every task has the same."""

    def fill(folder):
        write_sweep(folder, seeds=(0, 1))
        frames = pd.read_parquet(folder / "frames.parquet")
        frames[frames["task"] == "retrieval"].to_parquet(folder / "frames.parquet")
        sweep = read_sweep(folder)
        draw_plots(sweep, summarise(sweep)[0], folder / "plots")

    return once("pictures", fill)


@pytest.mark.parametrize("name", SETTINGS)
def test_what_a_user_has_set_neither_stops_nor_changes_pictures(drawn, tmp_path, name):
    changes, rc = SETTINGS[name]
    (tmp_path / "settings").mkdir()
    (tmp_path / "settings" / "matplotlibrc").write_bytes(LOUD)
    if rc is not None:
        (tmp_path / "matplotlibrc").write_bytes(rc)
    subprocess.run(
        [sys.executable, "-c", DRAW, drawn, tmp_path / "plots"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT), **changes}, check=True,
    )  # fmt: skip
    assert pictures(tmp_path / "plots") == pictures(drawn / "plots")


def test_a_style_chosen_in_the_same_process_stays_out_and_stays_chosen(drawn, tmp_path):
    """As in a notebook that calls `rad_bench` and draws for itself."""
    with matplotlib.rc_context({"font.size": 31, "axes.facecolor": "red", "figure.dpi": 300}):
        sweep = read_sweep(drawn)
        draw_plots(sweep, summarise(sweep)[0], tmp_path / "plots")
        assert matplotlib.rcParams["font.size"] == 31
    assert pictures(tmp_path / "plots") == pictures(drawn / "plots")
