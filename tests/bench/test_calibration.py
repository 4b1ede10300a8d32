"""A calibration takes all models in turns, at the sweep's sizes, and repeats the same work each time."""

import pytest
import torch

from rad_bench.bench import calibration
from rad_bench.bench.calibration import TooSlowError, take_turns
from rad_bench.config import LaunchConfig
from rad_bench.model.budget import count_flops
from rad_bench.store.result import Calibration
from tests.runs import opened, tiny_run

CPU = torch.device("cpu")


def config(memory):
    return tiny_run(memory=memory, evaluation={"context": 11, "horizon": 24}).config


def works(memory):
    return calibration._works(opened(config(memory), perturbed=True), LaunchConfig())


def test_every_model_has_a_time_of_each_part_in_each_turn(monkeypatch):
    monkeypatch.setattr(calibration, "SECONDS", 0.0)
    turns = take_turns({name: config({"name": name}) for name in ("none", "lstm")}, LaunchConfig(), CPU)
    for timing in turns.timings.values():
        parts = (timing.step, timing.first_frames, timing.last_frames)
        assert [len(part) for part in parts] == [calibration.FEWEST] * 3 and all(s > 0 for part in parts for s in part)
    assert list(turns.timings) == ["none", "lstm"] and (turns.others is None or turns.others >= 0)


PARTS = ("step", "first_frames", "last_frames")


def test_models_take_turns(monkeypatch):
    order = []
    names = {"a": config({"name": "none"}), "b": config({"name": "lstm"})}
    monkeypatch.setattr(calibration, "open_experiment", lambda config, device: config.memory.name)
    monkeypatch.setattr(
        calibration, "_works", lambda name, launch: {part: lambda: order.append(name) for part in PARTS}
    )
    monkeypatch.setattr(calibration, "SECONDS", 0.0)
    take_turns(names, LaunchConfig(), CPU)
    assert order == (["none"] * 3 + ["lstm"] * 3) * (1 + calibration.FEWEST)  # the first turn is not timed


def test_a_turn_repeats_the_same_frames_and_the_last_ones_cost_more_only_if_the_state_grows():
    flops = {}
    for name in ("lstm", "attention"):
        own = works({"name": name})
        for part in PARTS[1:]:
            first, again = own[part](), own[part]()
            assert torch.equal(first[0], again[0])
            flops[name, part] = count_flops(own[part])
    assert flops["lstm", "last_frames"] == flops["lstm", "first_frames"]
    assert flops["attention", "last_frames"] > flops["attention", "first_frames"]


def test_a_step_of_a_turn_trains_and_leaves_the_frames_alone():
    own = works({"name": "lstm"})
    before = own["first_frames"]()
    losses = [float(own["step"]()[0]) for _ in range(3)]
    assert len(set(losses)) == 3
    assert own["first_frames"]()[0].shape == before[0].shape


def test_what_would_take_minutes_is_not_measured(monkeypatch):
    monkeypatch.setattr(calibration, "LIMIT", 0.0)
    with pytest.raises(TooSlowError, match="5 turns"):
        take_turns({"none": config({"name": "none"})}, LaunchConfig(), CPU)


def test_other_work_is_what_cores_did_beside_this_process():
    before = calibration._Moment(wall=0.0, own=10.0, all_cores=500.0)
    assert calibration._others(before, calibration._Moment(20.0, 28.0, 548.0)) == 1.5
    assert calibration._others(before, calibration._Moment(20.0, 30.0, 519.0)) == 0.0  # clocks tick coarsely
    assert calibration._others(before, calibration._Moment(20.0, 30.0, None)) is None
    first, second = calibration._Moment.now(), calibration._Moment.now()
    assert first.all_cores is None or 0 < first.all_cores <= second.all_cores


@pytest.mark.parametrize(("others", "busy"), [(None, False), (0.0, False), (0.3, False), (0.5, True), (3.9, True)])
def test_a_machine_is_busy_if_other_work_uses_a_tenth_of_it(others, busy):
    assert Calibration(models={}, others=others, cores=4).busy == busy
