import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import pytest
import torch
from filelock import FileLock

from rad_bench.drawing import Figure
from rad_bench.evaluation.weights import fetched_path
from tests.sweep import slurm as slurm_cluster
from tests.sweep.tiny import TINY, run_here

torch.set_num_threads(1)


# In the user's cache, before the tests get their own.
FETCHED = {"lpips": fetched_path("alexnet"), "fvd": fetched_path("i3d")}


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    """Keep what is remembered of data folders out of the user's cache, and weights in there out of the tests."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def once(tmp_path_factory):
    """Return a folder that is filled once for all test processes: `once(name, fill)`. It is to be read only."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base  # see pytest-xdist, "How to"

    def folder(name, fill):
        made = shared / name
        with FileLock(f"{made}.lock"):
            if not (made / "filled").exists():
                made.mkdir()
                fill(made)
                (made / "filled").touch()
        return made

    return folder


@pytest.fixture(scope="session")
def tiny_sweep(once):
    """The folder of the tiny sweep, which ran here undisturbed, with its four runs. It is to be read only."""

    def fill(folder):
        (folder / "tiny.yaml").write_text(TINY)
        run_here("sweep", "tiny.yaml", cwd=folder)

    return once("tiny-sweep", fill)


@pytest.fixture(scope="session")
def slurm(tmp_path_factory):
    """A real SLURM of its own for each test process."""
    if not slurm_cluster.installed():
        pytest.skip("SLURM is not installed (Debian: slurm-wlm)")
    cluster = slurm_cluster.Slurm(tmp_path_factory.mktemp("slurm"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def without_plots(monkeypatch):
    """Reports of this process have no plots, which take seconds, for tests of what else a report says."""
    monkeypatch.setattr("rad_bench.report.plots.draw_plots", lambda *_: [])


@pytest.fixture
def without_pdf(monkeypatch):
    """Reports of this process have plots as SVG alone, for tests of what plots show: PDF takes longer than all else."""
    draw = Figure.savefig

    def savefig(figure, file, **options):
        if Path(str(file)).suffix != ".pdf":
            draw(figure, file, **options)

    monkeypatch.setattr(Figure, "savefig", savefig)


@pytest.fixture
def lpips_weights():
    """The file that `rad-bench weights lpips` has fetched into the user's cache."""
    return _fetched("lpips")


@pytest.fixture
def fvd_weights():
    """The file that `rad-bench weights fvd` has fetched into the user's cache."""
    return _fetched("fvd")


def _fetched(metric):
    if not FETCHED[metric].is_file():
        pytest.skip(f"the weights of {metric} are not here (rad-bench weights {metric})")
    return FETCHED[metric]
