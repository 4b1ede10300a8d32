"""Interventions rolled out side by side against one by one."""

import numpy as np
import pytest
import torch

from rad_bench.config import RunConfig
from rad_bench.errors import UserError
from rad_bench.evaluation.evaluate import evaluate, held_out
from rad_bench.evaluation.interventions import partners, read_context, roll_out
from rad_bench.evaluation.tasks import Task, make_task
from rad_bench.look.film import film
from rad_bench.model.diffusion import Diffusion
from rad_bench.model.motion import motion_features
from rad_bench.model.rollout import frame_noise, rollout
from tests.runs import opened, shaken

CPU = torch.device("cpu")


@pytest.mark.parametrize("memory", ["lstm", "attention"])  # a state of constant size, and one that grows
@pytest.mark.parametrize("batch", [2, 64])
def test_interventions_side_by_side_equal_each_alone(memory, batch):
    evaluation = {"episodes": 5, "context": 6, "horizon": 7, "batch": batch, "interventions": ("swap", "keep", "reset")}
    run = RunConfig.model_validate({"memory": memory, "trunk": {"width": 16}, "evaluation": evaluation})
    experiment = opened(run, perturbed=True)
    trunk, codec = experiment.trunk, experiment.codec
    task = make_task("continuation", experiment.dataset.held_out(5, 13, 6), run.evaluation, 1)
    told: list[int] = []

    found = roll_out(experiment, task, told.append)

    motion = motion_features(run.trunk.motion, task.actions, task.egomotion)
    diffusion = Diffusion(run.diffusion, codec.bound)
    distinct = []
    for e in range(5):
        for intervention in run.evaluation.interventions:
            cache = read_context(experiment, task.given[[e]], motion[[e]])
            if intervention == "reset":
                cache = cache.with_memory(trunk.start(1).memory())
            elif intervention == "swap":
                partner = [(e + 2) % 5]
                other = read_context(experiment, task.given[partner], motion[partner])
                cache = cache.with_memory(other.memory())

            def noise(h, e=e):
                return frame_noise(run.evaluation.seed, task.name, e, h, trunk.frame_shape)[None]

            alone = codec.decode(rollout(trunk, diffusion, motion[[e], 6:], cache, noise).frames[0])
            together = found.frames[intervention][e]
            distinct.append(together)
            assert (alone.int() - together.int()).abs().max() <= 1  # where rounding falls to the other grey level
    assert min((a != b).float().mean() for a, b in zip(distinct, distinct[1:], strict=False)) > 0.1
    assert told[-1] == 3
    assert found.videos == min(batch, 5) and len(found.seconds) == 7  # however alike the states are


@pytest.mark.parametrize(
    ("recordings", "expected"),
    [
        (None, [3, 4, 5, 0, 1, 2]),  # the embedded world: each episode is a room of its own
        ("aabbcc", [3, 4, 5, 0, 1, 2]),
        ("aaaaab", [5, 5, 5, 5, 5, 2]),
        ("aabbaa", [3, 2, 5, 0, 2, 2]),
        ("aaaaaa", None),
    ],
)
def test_a_swaps_partner_is_of_another_recording(recordings, expected):
    nothing = torch.zeros(6, 8, 0)
    truth = torch.zeros(6, 8, 3, 16, 16).byte()
    names = None if recordings is None else tuple(recordings)
    found = partners(Task("continuation", 4, truth, nothing, nothing, nothing, nothing, names).origins)
    assert (None if found is None else found.tolist()) == expected


def test_clips_of_one_recording_are_not_swapped(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(3):
        np.savez(
            tmp_path / f"{number}.npz",
            image=rng.integers(0, 256, (60, 16, 16, 3), np.uint8),
            action=np.eye(6)[rng.integers(0, 6, 60)],
            agent_pos=np.full((60, 2), 2.5),
            agent_dir=np.tile([1.0, 0.0], (60, 1)),
            maze_layout=np.ones((5, 5), bool),
        )
    for held_out_share, found in ((0.3, {"keep", "reset"}), (0.6, {"keep", "reset", "swap"})):
        data = {"name": "memory_maze", "path": str(tmp_path), "held_out": held_out_share}
        evaluation = {"episodes": 2, "context": 10, "horizon": 12}
        trained = shaken(data=data, evaluation=evaluation)
        result = evaluate(trained, lambda done, of: None)
        assert set(result.frames["intervention"]) == found
        if "swap" not in found:
            with pytest.raises(UserError, match="clips of one recording"):
                film([trained], "continuation", ["swap"], [])


@pytest.mark.parametrize("memory", ["lstm", "attention"])
@pytest.mark.parametrize("batch", [2, 64])
def test_episodes_asked_for_are_to_the_bit_what_they_are_among_all(memory, batch):
    trained = shaken(memory=memory, evaluation={"episodes": 5, "batch": batch})
    config = trained.run.config
    task = make_task("continuation", held_out(config, trained.dataset), config.evaluation, 1)
    every = roll_out(trained, task).frames
    some = roll_out(trained, task, only={"swap": [4, 0], "reset": [3]}).frames
    assert set(some) == {"swap", "reset"}
    assert torch.equal(some["swap"], every["swap"][[4, 0]])
    assert torch.equal(some["reset"], every["reset"][[3]])
