import pytest

from tests.sweep import slurm as slurm_cluster


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
