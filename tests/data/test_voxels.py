"""The voxel world: what it promises to training and to evaluation."""

from __future__ import annotations

import math
from dataclasses import fields

import numpy as np
import pytest
import torch

from rad_bench.config import EvaluationConfig, VoxelsData
from rad_bench.data import Episodes
from rad_bench.data.episodes import egomotion_from_poses
from rad_bench.data.voxels import cast
from rad_bench.data.voxels.dataset import RAYS, Voxels
from rad_bench.data.voxels.terrain import AIR, ARENA, OUT, SIZE, TALL, World, make_world
from rad_bench.data.voxels.textures import LEVELS, TEXELS, textures
from rad_bench.data.voxels.walk import (
    ACTIONS,
    CLIMB,
    EYE,
    FORWARD,
    HEADINGS,
    LEFT,
    NONE,
    RIGHT,
    TURN,
    explore,
    reachable,
    step,
)
from rad_bench.evaluation.revisits import classify
from rad_bench.evaluation.tasks import make_task

REACH = 6  # frames that attention reaches in the published sweeps


def voxels(size: int = 32, split: str = "held_out") -> Voxels:
    return Voxels(VoxelsData.model_validate({"name": "voxels", "size": size, "split": split}))


def world(seed: int) -> World:
    return make_world(np.random.default_rng(seed))


def equal(a: Episodes, b: Episodes) -> bool:
    def same(name: str) -> bool:
        x, y = getattr(a, name), getattr(b, name)
        return torch.equal(x, y) if isinstance(x, torch.Tensor) else bool(x == y)

    return all(same(f.name) for f in fields(Episodes))


@pytest.mark.parametrize("size", [32, 40, 128, 256])
def test_shapes_and_types(size: int) -> None:
    data = voxels(size)
    clips = data.training_batch(seed=0, step=0, batch=2, frames=5)
    assert data.frame_shape == (3, size, size) and data.action_size == ACTIONS and data.pose_size == 5
    assert clips.frames.shape == (2, 5, 3, size, size) and clips.frames.dtype == torch.uint8
    assert clips.actions.shape == (2, 5, ACTIONS) and clips.actions.dtype == torch.float32
    assert clips.egomotion.shape == (2, 5, 5) and clips.egomotion.dtype == torch.float32
    assert clips.poses.shape == (2, 5, 5) and clips.poses.dtype == torch.float64
    assert clips.surfaces.shape == (2, 5, 0) and clips.surfaces.dtype == torch.int64
    held_out = data.held_out(episodes=2, frames=5, context=3)
    assert held_out.surfaces.shape == (2, 5, RAYS[0] * RAYS[1]) and held_out.surfaces.dtype == torch.int64


def test_a_clip_has_the_same_bits_whatever_is_made_with_it() -> None:
    one, other = voxels(), voxels()
    other.training_batch(5, 5, 2, 5)
    batch = one.training_batch(1, 2, 5, 12, with_surfaces=True)
    for rows in (slice(0, 1), slice(1, 4), slice(4, 5)):
        assert equal(batch.select(rows), other.training_batch(1, 2, 5, 12, rows, with_surfaces=True))
    assert equal(one.held_out(2, 20, 10), one.held_out(4, 20, 10).select(slice(0, 2)))


def test_a_view_has_the_same_bits_in_every_batch() -> None:
    here = world(0)
    _, poses = explore(np.random.default_rng(0), here.ground, here.start, 60)
    blocks, numbers = np.stack([world(1).blocks, here.blocks]), np.ones(60, np.int32)
    together = cast.look(blocks, numbers, poses, 48, 70)
    for begin, end in ((0, 1), (7, 10), (20, 59)):
        assert np.array_equal(cast.look(blocks, numbers[begin:end], poses[begin:end], 48, 70), together[begin:end])


def test_streams_never_share_a_world() -> None:
    data = voxels()
    clips = [
        data.training_batch(0, 0, 4, 2),
        data.training_batch(1, 0, 4, 2),
        data.training_batch(0, 1, 4, 2),
        data.held_out(4, 2, 1),
        voxels(split="validation").held_out(4, 2, 1),
        data.probe_clips(True, 4, 2),
        data.probe_clips(False, 4, 2),
        voxels(split="validation").probe_clips(False, 4, 2),
        *(data.recording(0, episode, 2)[0] for episode in range(4)),
    ]
    views = [frames[0].numpy().tobytes() for part in clips for frames in part.frames]
    assert len(set(views)) == len(views) == 36


def test_actions_say_how_the_walker_moved() -> None:
    clips = voxels(8).training_batch(0, 0, 6, 60)
    assert not clips.actions[:, 0].any() and not clips.egomotion[:, 0].any()
    assert (clips.actions[:, 1:].sum(-1) == 1).all()
    forward, sideways, turn, up, pitch = clips.egomotion[:, 1:].unbind(-1)
    action = clips.actions[:, 1:].argmax(-1)
    walks = action == FORWARD
    torch.testing.assert_close(turn, torch.where(action == LEFT, TURN, torch.where(action == RIGHT, -TURN, 0)))
    assert (forward[walks] > 0.9).all() and (sideways[walks].abs() < 0.4).all() and (up.abs() <= CLIMB).all()
    assert not forward[~walks].any() and not up[~walks].any() and not pitch[walks].any()
    assert set(action.flatten().tolist()) == set(range(ACTIONS)) - {NONE}


def test_the_walker_is_never_inside_a_block_and_stays_in_the_arena() -> None:
    climbed = 0.0
    for seed in range(8):
        here = world(seed)
        _, poses = explore(np.random.default_rng(seed), here.ground, here.start, 120)
        i, j = poses[:, 0].astype(int), poses[:, 1].astype(int)
        feet = np.round(poses[:, 3] - EYE).astype(int)
        assert np.array_equal(feet, here.ground[i, j])
        assert (here.blocks[i, j, feet - 1] > OUT).all()
        assert (here.blocks[i, j, feet] == AIR).all() and (here.blocks[i, j, feet + 1] == AIR).all()
        assert np.hypot(i - SIZE // 2, j - SIZE // 2).max() <= ARENA
        assert np.abs(np.diff(feet)).max() <= CLIMB
        climbed += np.abs(np.diff(feet)).sum()
    assert climbed > 8


def test_a_walk_is_what_its_actions_lead_to() -> None:
    here = world(3)
    actions, poses = explore(np.random.default_rng(3), here.ground, here.start, 200)
    for action, before, after in zip(actions[1:], poses[:-1], poses[1:], strict=True):
        pose = step(here.ground, before, int(action))
        assert pose is not None and np.array_equal(pose, after)


def test_explorers_of_a_single_cell_look_around_and_of_a_wall_do_not_cross_it() -> None:
    ground = np.full((5, 5), np.nan)
    ground[2, 2] = 1.0
    actions, poses = explore(np.random.default_rng(0), ground, (2, 2), 50)
    assert FORWARD not in actions and (poses[:, :2] == 2.5).all() and len(np.unique(poses[:, 2])) > HEADINGS // 2
    ground[:] = 1.0
    ground[2] = 1.0 + CLIMB + 0.1
    assert all(i < 2 for i, _ in reachable(ground, (0, 0)))


def test_the_way_back_inverts_the_way_there() -> None:
    episodes = voxels().held_out(3, 30, 30)
    config = EvaluationConfig(context=30, horizon=10)
    task = make_task("retrieval", episodes, config, 1)
    torch.testing.assert_close(egomotion_from_poses(task.poses).float(), task.egomotion, atol=1e-5, rtol=0)


def test_half_of_a_walk_comes_back_to_what_it_saw_after_gaps_of_all_lengths() -> None:
    kinds, gaps = classify(voxels(8).held_out(12, 96, 48).surfaces, 48, REACH)
    revisits = kinds == "revisit"
    assert revisits.mean() >= 0.4
    assert (kinds == "novel").mean() > 0.01
    low, high = np.quantile(gaps[revisits], (0.1, 0.9))
    assert low < 20 and high > 45


def test_the_way_back_of_retrieval_needs_a_memory() -> None:
    episodes = voxels(8).held_out(8, 40, 40)
    task = make_task("retrieval", episodes, EvaluationConfig(context=40, horizon=1), 1)
    kinds, _ = classify(task.surfaces, 40, REACH)
    assert (kinds == "revisit").mean() > 0.6


def test_rays_meet_the_first_block_on_their_way() -> None:
    """Against small steps along each ray, the slow form."""
    here = world(5)
    _, poses = explore(np.random.default_rng(5), here.ground, here.start, 60)
    poses = poses[::12]
    rays = cast.directions(poses, 9, 9, 70).reshape(-1, 3)
    starts = np.repeat(poses[:, [0, 1, 3]].astype(np.float32), 81, 0)
    hits = cast.meet_blocks(here.blocks, np.zeros(len(rays), np.int32), starts, rays)
    pace = 0.002
    along = np.arange(0, 30, pace)
    for start, ray, block, cell, distance in zip(starts, rays, hits.block, hits.cell, hits.distance, strict=True):
        x, y, z = np.clip((start + along[:, None] * ray).astype(int), 0, (SIZE - 1, SIZE - 1, TALL - 1)).T
        first = int((here.blocks[x, y, z] != AIR).argmax())
        met = (x[first] * SIZE + y[first]) * TALL + z[first]
        if met == cell:
            assert block == here.blocks[x[first], y[first], z[first]] and abs(along[first] - distance) <= 2 * pace
        else:  # the steps missed a corner
            assert distance <= along[first] + pace


def test_a_surface_shows_its_own_texture() -> None:
    """Near faces, of which one pixel is one texel: the pixel is a texel of that face, in that face's shade."""
    here, size = world(2), 32
    poses = explore(np.random.default_rng(2), here.ground, here.start, 60)[1][::8]
    frames = cast.look(here.blocks[None], np.zeros(len(poses), np.int32), poses, size, 70)
    faces = cast.faces(here.blocks, poses, (size, size), 70).reshape(-1, size, size)
    rays = cast.directions(poses, size, size, 70).reshape(-1, 3)
    starts = np.repeat(poses[:, [0, 1, 3]].astype(np.float32), size**2, 0)
    hits = cast.meet_blocks(here.blocks, np.zeros(len(rays), np.int32), starts, rays)
    near = (hits.distance.reshape(faces.shape) < cast.CLEAR) & (faces >= 0)
    checked = 0
    for face in np.unique(faces[near]):
        cell, side = divmod(int(face), 6)
        block = here.blocks.ravel()[cell]
        texels = textures()[:, block, cast.FACE_KIND[side]].reshape(LEVELS * TEXELS**2, 3)
        texels = np.unique(texels, axis=0) * cast.FACE_SHADE[side]
        pixels = frames.transpose(0, 2, 3, 1)[(faces == face) & near].astype(float)
        off = np.abs(pixels[:, None] - texels[None]).max(-1).min(1)
        assert off.max() <= 0.51
        checked += len(pixels)
    assert checked > 4_000


def test_probe_targets_are_the_colours_of_level_views_around() -> None:
    clips = voxels().probe_clips(True, 3, 30)
    assert clips.hidden is not None
    hidden = clips.hidden["colours around"]
    assert hidden.values.shape == hidden.known.shape == (3, HEADINGS * 3)
    assert (hidden.values >= 0).all() and (hidden.values <= 1).all() and hidden.values.std() > 0.05
    assert hidden.known.all(-1).any() or (hidden.known.float().mean(-1) >= 0.5).all()
    assert math.isclose(float(hidden.known.float().mean()), 0.75, abs_tol=0.26)
