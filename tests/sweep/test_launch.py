"""Where runs execute: which cluster, which GPUs."""

import pytest

from rad_bench.config import LaunchConfig
from rad_bench.sweep.launch import gpus_of, visible_gpus


@pytest.mark.parametrize(
    ("visible", "launch", "expected"),
    [
        ((), {}, [(), (), ()]),
        (("0",), {}, [("0",), ("0",), ("0",)]),  # shared
        (("0", "1"), {}, [("0",), ("1",), ("0",)]),
        (("4", "5", "6", "7"), {"processes": 2}, [("4", "5"), ("6", "7"), ("4", "5")]),
        (("0",), {"processes": 2}, [("0",), ("0",), ("0",)]),
        (("0", "1"), {"device": "cpu"}, [(), (), ()]),
        (("0", "1"), {"device": "cuda:1"}, [("0", "1"), ("0", "1"), ("0", "1")]),
    ],
)
def test_runs_beside_each_other_have_gpus_of_their_own_where_there_are_enough(visible, launch, expected):
    assert [gpus_of(place, LaunchConfig(**launch), visible) for place in range(3)] == expected


def test_the_gpus_to_use_are_those_that_the_user_shows(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, GPU-8932f937")
    assert visible_gpus() == ("2", "GPU-8932f937")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus() == ()
