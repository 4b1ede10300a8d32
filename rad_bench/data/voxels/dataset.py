"""The voxel world as a data set: every episode is a walk in a new world of blocks, drawn on demand.

The walks are the explorer's (`walk.py`), in training and in held-out episodes alike. Each clip has random streams of
its own, so that any of them can be made without the others.

A surface is one face of one block. A grid of rays says which of them a frame shows: with these 32 x 32 rays, 98 % of
frames are of the same kind (revisit, novel ...) as with 96 x 128.

Letters: B episodes, T frames, R rays.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from rad_bench.config import VoxelsData
from rad_bench.data.episodes import Episodes, Hidden, egomotion_from_poses
from rad_bench.data.voxels import cast, terrain, textures, walk
from rad_bench.data.voxels.terrain import World, make_world
from rad_bench.data.voxels.walk import ACTIONS, HEADINGS, TURN, explore

VERSIONS = (terrain.VERSION, textures.VERSION, cast.VERSION, walk.VERSION)  # part of the data's identity
RAYS = (32, 32)  # rows and columns of the grid of rays that tells surfaces
# First word of every random key, so that they never share a stream.
TRAINING, HELD_OUT, PROBE, VALIDATION, RECORDED = range(1, 6)
PROBE_SIZE, PROBE_COLUMNS = 16, slice(6, 10)  # of the small views whose middle columns a probe is asked for
Walk = tuple[World, NDArray[np.int64], NDArray[np.float64]]  # with actions [T] and poses [T, 5]


class Voxels:
    """Implements `Dataset`. Training clips and the episodes of each split come from random streams of their own."""

    def __init__(self, config: VoxelsData) -> None:
        self.config = config
        self.frame_shape = (3, config.size, config.size)
        self.action_size = ACTIONS
        self.has_poses, self.pose_size = True, 5
        self.same_view: tuple[float, float] | None = None
        self.identity = hashlib.sha256(f"voxels {VERSIONS} {config.model_dump_json()}".encode()).hexdigest()[:16]

    def training_batch(
        self, seed: int, step: int, batch: int, frames: int, rows: slice = slice(None), with_surfaces: bool = False
    ) -> Episodes:
        """Return rows of `batch` clips: a pure function of the config and the arguments."""
        clips = range(batch)[rows]
        walks = [self._walk([TRAINING, seed, step, batch, frames, b], frames) for b in clips]
        return self._episodes(walks, [f"voxels/{seed}/{step}/{b}" for b in clips], with_surfaces)

    def held_out(self, episodes: int, frames: int, context: int) -> Episodes:
        """Return the first episodes of an endless sequence, one for each `data.split`, with surfaces.

        Episode e depends only on e and the number of frames.
        """
        walks = [self._held_out_walk(e, frames) for e in range(episodes)]
        split = self.config.split.replace("_", "-")
        return self._episodes(walks, [f"voxels/{split}/{e}" for e in range(episodes)], with_surfaces=True)

    def place(self, episode: int, frames: int) -> Place:
        """Return the world of an episode of `held_out`, in which the caller can walk freely."""
        return Place(self._held_out_walk(episode, frames)[0], self.config)

    def recording(self, seed: int, episode: int, frames: int) -> tuple[Episodes, NDArray[np.float64]]:
        """Return one episode to be stored as a recording, from a stream of its own, and its world's ground."""
        walk = self._walk([RECORDED, seed, episode, frames], frames)
        return self._episodes([walk], [f"voxels/recorded/{seed}/{episode}"]), walk[0].ground

    def probe_clips(self, training: bool, count: int, frames: int) -> Episodes:
        """Return clips with probe targets: the colours that each heading shows from the clip's first place.

        They are the mean colours of the middle of a level view. Headings are relative to the first frame's. A heading
        is known if the walker looked in that direction from there.
        """
        unseen = [VALIDATION] if self.config.split == "validation" and not training else []
        walks = [self._walk([PROBE, training, count, frames, b, *unseen], frames) for b in range(count)]
        clips = self._episodes(walks, [f"voxels/probe/{training}/{b}" for b in range(count)])
        poses = clips.poses.numpy()
        around = np.repeat(poses[:, :1], HEADINGS, 1)
        around[..., 2] += TURN * np.arange(HEADINGS)
        around[..., 4] = 0
        views = self._look([world for world, _, _ in walks], around, PROBE_SIZE)
        colours = views[..., PROBE_COLUMNS].mean((-1, -2)) / 255
        looked = np.round((poses[..., 2] - poses[:, :1, 2]) / TURN).astype(np.int64) % HEADINGS
        there = (poses[..., :2] == poses[:, :1, :2]).all(-1)
        known = ((looked[..., None] == np.arange(HEADINGS)) & there[..., None]).any(1)
        hidden = Hidden(torch.from_numpy(colours.reshape(count, -1)), torch.from_numpy(np.repeat(known, 3, 1)))
        return replace(clips, hidden={"colours around": hidden})

    def _held_out_walk(self, episode: int, frames: int) -> Walk:
        stream = VALIDATION if self.config.split == "validation" else HELD_OUT
        return self._walk([stream, episode, frames], frames)

    def _walk(self, key: Sequence[int], frames: int) -> Walk:
        """Return the world and the walk of a random key."""
        rng = np.random.default_rng(list(key))
        world = make_world(rng)
        return world, *explore(rng, world.ground, world.start, frames)

    def _look(self, worlds: Sequence[World], poses_BT5: NDArray[np.float64], size: int) -> NDArray[np.uint8]:
        """Return the views of each world, [B, T, 3, size, size]."""
        B, T, _ = poses_BT5.shape
        blocks = np.stack([world.blocks for world in worlds])
        frames = cast.look(blocks, np.repeat(np.arange(B), T), poses_BT5.reshape(-1, 5), size, self.config.fov)
        return frames.reshape(B, T, 3, size, size)

    def _episodes(
        self,
        walks: Sequence[Walk],
        names: Sequence[str],
        with_surfaces: bool = False,
    ) -> Episodes:
        worlds = [world for world, _, _ in walks]
        poses = np.stack([poses for _, _, poses in walks])
        one_hot = np.eye(ACTIONS, dtype=np.float32)[np.stack([actions for _, actions, _ in walks])]
        one_hot[:, 0] = 0  # no action led to the first frame
        surfaces = np.zeros((*poses.shape[:2], 0), np.int64)
        if with_surfaces:
            seen = [cast.faces(w.blocks, path, RAYS, self.config.fov) for w, path in zip(worlds, poses, strict=True)]
            surfaces = np.stack(seen)
        pose = torch.from_numpy(poses)
        return Episodes(
            frames=torch.from_numpy(self._look(worlds, poses, self.config.size)),
            actions=torch.from_numpy(one_hot),
            egomotion=egomotion_from_poses(pose).float(),
            poses=pose,
            surfaces=torch.from_numpy(surfaces),
            names=tuple(names),
        )


class Place:
    """One world: moves a pose by an action, draws the view from a pose, and shows what lies around from above."""

    def __init__(self, world: World, config: VoxelsData) -> None:
        self.world, self.config = world, config

    def step(self, pose_5: NDArray[np.floating], action: int) -> NDArray[np.float64] | None:
        """Return the pose after an action, bit for bit as in episodes; None if it is not possible."""
        return walk.step(self.world.ground, pose_5, action)

    def look(self, poses_T5: NDArray[np.floating]) -> NDArray[np.uint8]:
        """Return the views from poses in the open, [T, 3, size, size]."""
        numbers = np.zeros(len(poses_T5), np.int32)
        return cast.look(self.world.blocks[None], numbers, poses_T5, self.config.size, self.config.fov)

    def surfaces(self, poses_T5: NDArray[np.floating]) -> NDArray[np.int64]:
        """Return which face each ray meets, [T, R], as in episodes."""
        return cast.faces(self.world.blocks, poses_T5, RAYS, self.config.fov)

    def contains(self, pose_5: NDArray[np.floating]) -> bool:
        """Return whether a pose lies within the world and outside its blocks."""
        cell = np.floor(np.asarray(pose_5)[[0, 1, 3]]).astype(int)
        inside = (cell >= 0).all() and (cell < self.world.blocks.shape).all()
        return bool(inside and self.world.blocks[tuple(cell)] == terrain.AIR)

    def plan(self) -> NDArray[np.uint8]:
        """Return the colours of the columns [x, y, 3] from above, the brighter the higher."""
        return terrain_map(self.world.blocks)


def terrain_map(blocks: terrain.Blocks) -> NDArray[np.uint8]:
    """Return the colour of the highest block of each column of a world, [x, y, 3]; higher ones are brighter."""
    solid = blocks > terrain.OUT
    height = np.where(solid, np.arange(blocks.shape[2]), 0).max(2)
    top = np.take_along_axis(blocks, height[..., None], 2)[..., 0]
    colour = textures.textures()[-1, top, textures.TOP, 0, 0]
    light = np.clip(0.55 + 0.05 * height, 0, 1)[..., None]
    return (colour * light).astype(np.uint8)
