"""The embedded world: square rooms with coloured walls and a pillar, drawn on demand. No download, no files.

Every episode is a new room, [-1, 1] in x and y, whose wall panels and pillar have random colours. In each frame the
agent turns by one heading or, unless `step` is 0, takes a step. An episode starts with a look around: a full turn or,
in 40 % of episodes, half a turn. Then the agent sweeps left and right, so that views return. In held-out episodes it
also lingers around one direction, for a few frames or many, so that gaps are spread over the horizon. In training clips
it lingers for up to `linger` frames.

Dials of difficulty: `headings` (how much neighbouring frames share), `panels`, `palette` and `texture` (how much there
is to remember), `step` (whether views return exactly). Of a list of `panels`, each training room has a random one, and
held-out rooms have each in turn.

Letters: B episodes, T frames, R rays (columns of a frame), S sub-columns that are averaged into one.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from rad_bench.config import RoomsData
from rad_bench.data.episodes import Episodes, Hidden, Palette, egomotion_from_poses
from rad_bench.data.raycast import FloatArray, IntArray, bearings, meet_circle, meet_square
from rad_bench.data.walks import held_out_turns, training_turns

VERSION = 2  # of the drawing and the paths; part of the data's identity
NONE, LEFT, RIGHT, FORWARD = range(4)  # the actions
STEP_SHARE = 0.4  # of frames, in worlds with steps
START = 0.3  # the agent starts within this of the room's centre, in x and in y
PILLAR_RADIUS, PILLAR_RING = 0.15, (0.7, 0.8)  # radius, and range of its distance from the room's centre
MARGIN = 0.2  # smallest distance of the walking agent from walls and pillar
EYE = 0.5  # height of the eye; walls are twice as high
BASEBOARD, BASEBOARD_SHADE = 0.2, 0.45  # share of a wall's height, and how much darker it is
WALL_SHADE = (1.0, 0.88, 1.0, 0.88)  # so that neighbouring walls of the same colour differ
SKY, FLOOR = (128, 179, 230), (102, 89, 77)
PALETTE = (  # the first N are used
    (214, 39, 40), (44, 160, 44), (31, 70, 200), (245, 210, 50), (150, 60, 180), (240, 240, 240),
    (30, 30, 34), (240, 130, 30), (40, 190, 190), (240, 130, 190), (120, 75, 40), (150, 200, 60),
)  # fmt: skip
LONGEST_VIEW = 2 * math.sqrt(2)  # the room's diagonal
STRIPES = 4  # on a panel with texture
SUBCOLUMNS = 2  # rays averaged into each column, for antialiasing
# First word of every random key, so that they never share a stream.
TRAINING, HELD_OUT, PROBE, VALIDATION = 1, 2, 3, 4


@dataclass(frozen=True)
class _Layout:
    """B rooms. A wall is divided into the most panels that a room may have; neighbours may be one surface."""

    colours: FloatArray  # [B, 4 * panels * stripes + 1, 3] in 0..255; the last is the pillar's
    numbers: IntArray  # [B, 4 * panels + 1] of the palette's colours; zeros without a palette
    surfaces: IntArray  # [B, 4 * panels + 1] the surface that a panel belongs to, by the number of its first panel
    pillar: FloatArray  # [B, 2] centre

    def __getitem__(self, rows: slice) -> _Layout:
        return _Layout(self.colours[rows], self.numbers[rows], self.surfaces[rows], self.pillar[rows])


class Rooms:
    """Implements `Dataset`. Training clips and the episodes of each split come from random streams of their own."""

    def __init__(self, config: RoomsData) -> None:
        self.config = config
        self.loads = (config.panels,) if isinstance(config.panels, int) else config.panels  # panels a wall, of a room
        self.panels = max(self.loads)
        self.stripes = STRIPES if config.texture else 1  # on each panel
        self.frame_shape = (3, config.size, config.size)
        self.action_size = 4
        self.has_poses, self.pose_size = True, 3
        self.same_view: tuple[float, float] | None = None
        self.identity = hashlib.sha256(f"rooms {VERSION} {config.model_dump_json()}".encode()).hexdigest()[:16]

    def training_batch(
        self, seed: int, step: int, batch: int, frames: int, rows: slice = slice(None), with_surfaces: bool = False
    ) -> Episodes:
        """Return rows of `batch` clips: a pure function of the config and the arguments."""
        rng = np.random.default_rng([TRAINING, seed, step, batch, frames])
        layout = self._layouts(rng, batch)
        turns = self._training_turns(rng, batch, frames)
        actions, poses = self._move(rng, turns, layout)
        names = tuple(f"rooms/{seed}/{step}/{b}" for b in range(batch))
        layout = layout[rows]
        surfaces = self._surfaces(layout, poses[rows]) if with_surfaces else None
        return self._episodes(layout, actions[rows], poses[rows], names[rows], surfaces)

    def held_out(self, episodes: int, frames: int, context: int) -> Episodes:
        """Return the first episodes of an endless sequence, one for each `data.split`, with surfaces.

        Episode e depends only on e and the two lengths, so it stays the same when more episodes are requested.
        """
        drawn = []
        for e in range(episodes):
            rng, layout = self._held_out_layout(e, frames, context)
            actions, poses = self._move(rng, held_out_turns(rng, frames, context, self.config.headings)[None], layout)
            drawn.append((layout.colours, layout.numbers, layout.surfaces, layout.pillar, actions, poses))
        *parts, actions, poses = (np.concatenate(arrays) for arrays in zip(*drawn, strict=True))
        layout = _Layout(*parts)
        names = tuple(f"rooms/{self.config.split.replace('_', '-')}/{e}" for e in range(episodes))
        return self._episodes(layout, actions, poses, names, surfaces=self._surfaces(layout, poses))

    def room(self, episode: int, frames: int, context: int) -> Room:
        """Return the room of an episode of `held_out`, in which the caller can walk freely."""
        return Room(self, self._held_out_layout(episode, frames, context)[1])

    def _held_out_layout(self, episode: int, frames: int, context: int) -> tuple[np.random.Generator, _Layout]:
        stream = VALIDATION if self.config.split == "validation" else HELD_OUT
        rng = np.random.default_rng([stream, episode, frames, context])
        return rng, self._layouts(rng, 1, self.loads[episode % len(self.loads)])

    def probe_clips(self, training: bool, count: int, frames: int) -> Episodes:
        """Return clips with probe targets: the wall colour that each heading shows from the clip's first position.

        Headings are relative to the first frame's. A heading is known if the agent looked in that direction.
        """
        unseen = [VALIDATION] if self.config.split == "validation" and not training else []
        rng = np.random.default_rng([PROBE, training, count, frames, *unseen])
        layout = self._layouts(rng, count)
        turns = self._training_turns(rng, count, frames)
        actions, poses = self._move(rng, turns, layout)
        angle = 2 * math.pi / self.config.headings
        start = np.repeat(poses[:, :1], self.config.headings, 1)
        start[..., 2] += angle * np.arange(self.config.headings)
        _, wall, along = self._cast(layout, start, np.zeros(1))
        colour = np.take_along_axis(layout.colours, self._stripe(wall, along)[..., 0][..., None], 1) / 255
        looked = np.round((poses[..., 2] - poses[:, :1, 2]) / angle).astype(np.int64) % self.config.headings
        known = (looked[:, :, None] == np.arange(self.config.headings)).any(1)
        hidden = Hidden(torch.from_numpy(colour.reshape(count, -1)).double(), torch.from_numpy(np.repeat(known, 3, 1)))
        clips = self._episodes(layout, actions, poses, tuple(f"rooms/probe/{training}/{b}" for b in range(count)))
        return replace(clips, hidden={"wall colours": hidden})

    def _episodes(
        self,
        layout: _Layout,
        actions: IntArray,
        poses: FloatArray,
        names: tuple[str, ...],
        surfaces: IntArray | None = None,
    ) -> Episodes:
        one_hot = np.eye(self.action_size, dtype=np.float32)[actions]
        one_hot[:, 0] = 0  # no action led to the first frame
        pose = torch.from_numpy(poses)
        return Episodes(
            frames=torch.from_numpy(self._draw(layout, poses)),
            actions=torch.from_numpy(one_hot),
            egomotion=egomotion_from_poses(pose).float(),
            poses=pose,
            surfaces=torch.zeros(*actions.shape, 0).long() if surfaces is None else torch.from_numpy(surfaces),
            names=names,
            palette=self._palette(layout),
        )

    def _palette(self, layout: _Layout) -> Palette | None:
        """Return the colours of the rooms' surfaces; None if they are not plain colours of a palette.

        The rows just above the horizon show plain wall, however far away it is: the baseboard lies below.
        """
        spread = math.tan(math.radians(self.config.fov) / 2)
        rows = int(EYE / spread * self.config.size / 2 / LONGEST_VIEW)
        if self.config.palette is None or self.config.texture or not rows:
            return None
        candidates = self._shade()[:, None] * np.array(PALETTE[: self.config.palette])
        middle = self.config.size // 2
        return Palette(torch.from_numpy(candidates), torch.from_numpy(layout.numbers), slice(middle - rows, middle))

    def _shade(self) -> FloatArray:
        """Return the brightness of each surface, [4 * panels + 1, 1]."""
        return np.append(np.repeat(WALL_SHADE, self.panels), 1)[:, None]

    # -- rooms and paths -------------------------------------------------------------------------------------------

    def _layouts(self, rng: np.random.Generator, count: int, panels: int | None = None) -> _Layout:
        """Draw rooms, of `panels` panels a wall if they are given."""
        surfaces = 4 * self.panels + 1
        shade, numbers = self._shade(), np.zeros((count, surfaces), np.int64)
        surface = np.tile(np.arange(surfaces), (count, 1))
        if self.config.palette is None:
            hue = rng.random((count, surfaces, 1)) * 6
            saturation, value = rng.uniform(0.5, 1, (2, count, surfaces, 1))
            ramp = np.clip(np.abs((hue + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)
            colours = 255 * shade * value * (1 - saturation * (1 - ramp))
        else:
            numbers = rng.integers(self.config.palette, size=(count, surfaces))
            colours = shade * np.array(PALETTE)[numbers]
        if len(self.loads) > 1:
            own = rng.choice(self.loads, (count, 1)) if panels is None else np.full((count, 1), panels)
            surface[:, :-1] -= surface[:, :-1] % (self.panels // own)  # panels that are one surface
            numbers = np.take_along_axis(numbers, surface, 1)
            colours = np.take_along_axis(colours, surface[..., None], 1)
        angle, distance = rng.uniform(0, 2 * math.pi, count), rng.uniform(*PILLAR_RING, count)
        if self.stripes > 1:
            walls = np.repeat(colours[:, :-1], self.stripes, 1)
            walls = walls * (1 - self.config.texture * rng.random((*walls.shape[:2], 1)))
            colours = np.concatenate([walls, colours[:, -1:]], 1)
        return _Layout(colours, numbers, surface, distance[:, None] * np.stack([np.cos(angle), np.sin(angle)], -1))

    def _training_turns(self, rng: np.random.Generator, count: int, frames: int) -> IntArray:
        headings, linger = self.config.headings, self.config.linger
        return np.stack([training_turns(rng, frames, headings, linger) for _ in range(count)])

    def _move(self, rng: np.random.Generator, turns: IntArray, layout: _Layout) -> tuple[IntArray, FloatArray]:
        """Follow the turns [B, T], with steps in between. Returns actions [B, T] and poses [B, T, 3]."""
        count, frames = len(turns), turns.shape[1]
        turn = 2 * math.pi / self.config.headings
        place: FloatArray = rng.uniform(-START, START, (count, 2))
        heading: IntArray = rng.integers(self.config.headings, size=count)
        if not self.config.step:
            places = np.broadcast_to(place[:, None], (count, frames, 2))
            angles = (heading[:, None] + turns.cumsum(1)) * turn
            return np.choose(turns + 1, (RIGHT, NONE, LEFT)), np.concatenate([places, angles[..., None]], -1)
        wants_step = rng.random((count, frames)) < STEP_SHARE
        wants_step[:, : self.config.headings // 2 + 1] = False  # the look around starts on the spot
        actions, poses = np.zeros((count, frames), np.int64), np.zeros((count, frames, 3))
        turns_taken = np.zeros(count, np.int64)  # a step delays the next turn
        for t in range(frames):
            ahead = self._ahead(place, heading * turn)
            step = wants_step[:, t] & self._is_free(ahead, layout)
            direction = np.where(step, 0, turns[np.arange(count), turns_taken])
            place, heading = np.where(step[:, None], ahead, place), heading + direction
            turns_taken = turns_taken + ~step
            actions[:, t] = np.where(step, FORWARD, np.choose(direction + 1, (RIGHT, NONE, LEFT)))
            poses[:, t, :2], poses[:, t, 2] = place, heading * turn
        return actions, poses

    def _ahead(self, place_B2: FloatArray, heading_B: FloatArray) -> FloatArray:
        ahead: FloatArray = place_B2 + self.config.step * np.stack([np.cos(heading_B), np.sin(heading_B)], -1)
        return ahead

    def _is_free(self, place: FloatArray, layout: _Layout) -> NDArray[np.bool_]:
        free: NDArray[np.bool_] = np.abs(place).max(-1) <= 1 - MARGIN
        if self.config.pillar:
            free &= np.linalg.norm(place - layout.pillar, axis=-1) >= PILLAR_RADIUS + MARGIN
        return free

    # -- drawing ---------------------------------------------------------------------------------------------------

    def _cast(self, layout: _Layout, poses: FloatArray, bearing: FloatArray) -> tuple[FloatArray, IntArray, FloatArray]:
        """Cast rays at eye height. Returns distance, wall (4: the pillar) and position along it, all [B, T, R]."""
        poses = poses.astype(np.float32)[..., None]
        x, y, angle = poses[:, :, 0], poses[:, :, 1], poses[:, :, 2] + bearing.astype(np.float32)
        dx, dy = np.cos(angle), np.sin(angle)
        distance, wall, along = meet_square(x, y, dx, dy)
        if self.config.pillar:
            centre = layout.pillar.astype(np.float32)[:, None, None]
            to_pillar = meet_circle(x - centre[..., 0], y - centre[..., 1], dx, dy, PILLAR_RADIUS)
            meets = to_pillar < distance
            distance, wall = np.where(meets, to_pillar, distance), np.where(meets, 4, wall)
            along = np.where(meets, 0, along)
        return distance, wall, along

    def _surfaces(self, layout: _Layout, poses: FloatArray) -> IntArray:
        """Return which panel, or the pillar, each column meets at the horizon. [B, T, size]

        A panel is one surface, because each part of it shows the colour of the whole.
        """
        _, wall, along = self._cast(layout, poses, bearings(self.config.size, self.config.fov))
        rooms = np.arange(len(poses))[:, None, None]
        surfaces: IntArray = layout.surfaces[rooms, _part(wall, along, self.panels)]
        return surfaces

    def _stripe(self, wall: IntArray, along: FloatArray) -> IntArray:
        """Return the number of the stripe, an area of one colour; the last number is the pillar's."""
        return _part(wall, along, self.panels * self.stripes)

    def _draw(self, layout: _Layout, poses: FloatArray) -> NDArray[np.uint8]:
        """Return frames [B, T, 3, size, size]. Edges are antialiased: a pixel mixes the colours that cover it.

        The columns of all frames lie along one axis of N = B * T * size, which is fastest in numpy.
        """
        size = self.config.size
        spread = math.tan(math.radians(self.config.fov) / 2)
        row = (np.arange(size, dtype=np.float32) + 0.5 - size / 2)[:, None]  # below the horizon is positive
        background = np.where(row < 0, np.reshape(SKY, (3, 1, 1)), np.reshape(FLOOR, (3, 1, 1))).astype(np.float32)
        colours = layout.colours.astype(np.float32).transpose(2, 0, 1) / SUBCOLUMNS  # [3, B, surfaces]
        columns = poses.shape[0] * poses.shape[1] * size
        painted: list[tuple[FloatArray, FloatArray]] = []
        uncovered: FloatArray = np.ones((size, columns), np.float32)
        for bearing in bearings(size * SUBCOLUMNS, self.config.fov).astype(np.float32).reshape(size, SUBCOLUMNS).T:
            distance, wall, along = self._cast(layout, poses, bearing)
            stripe = self._stripe(wall, along)
            colour = colours[:, np.arange(len(poses))[:, None, None], stripe].reshape(3, 1, columns)
            # Half the wall's height on the image, in pixels. Depth, not distance, keeps straight edges straight.
            half = (EYE / spread * size / 2) / (distance * np.cos(bearing)).reshape(columns)
            covered = np.clip(half + 0.5 - np.abs(row), 0, 1)  # [size, N]
            baseboard = np.clip(row + 0.5 - half * (1 - 2 * BASEBOARD), 0, covered)
            painted.append((covered - BASEBOARD_SHADE * baseboard, colour))
            uncovered -= covered / SUBCOLUMNS
        frames: NDArray[np.uint8] = np.empty((*poses.shape[:2], *self.frame_shape), np.uint8)
        for channel in range(3):
            image = uncovered * background[channel] + sum(weight * colour[channel] for weight, colour in painted)
            image = (image + 0.5).astype(np.uint8).reshape(size, *poses.shape[:2], size)
            frames[:, :, channel] = image.transpose(1, 2, 0, 3)
        return frames


class Room:
    """One room: moves a pose by an action, draws the view from a pose, and returns the floor plan."""

    def __init__(self, rooms: Rooms, layout: _Layout) -> None:
        self._rooms, self._layout = rooms, layout

    def step(self, pose_3: FloatArray, action: int) -> FloatArray | None:
        """Return the pose after an action, bit for bit as in episodes; None if a wall or the pillar blocks it."""
        turn = 2 * math.pi / self._rooms.config.headings
        place, heading = pose_3[None, :2], round(float(pose_3[2]) / turn)
        if action == FORWARD:
            place = self._rooms._ahead(place, np.array([heading * turn]))
            if not self._rooms._is_free(place, self._layout).all():
                return None
        heading += {LEFT: 1, RIGHT: -1}.get(action, 0)
        return np.array([*place[0], heading * turn])

    def look(self, poses_T3: FloatArray) -> NDArray[np.uint8]:
        """Return the views from poses within the room, [T, 3, size, size]."""
        return self._rooms._draw(self._layout, poses_T3[None])[0]

    def surfaces(self, poses_T3: FloatArray) -> IntArray:
        """Return which surface each column meets, [T, size], as in episodes."""
        return self._rooms._surfaces(self._layout, poses_T3[None])[0]

    def contains(self, pose_3: FloatArray) -> bool:
        """Return whether a pose lies within the room and outside the pillar."""
        outside = np.abs(pose_3[:2]).max() >= 1
        inside_pillar = np.linalg.norm(pose_3[:2] - self._layout.pillar[0]) <= PILLAR_RADIUS
        return not (outside or (self._rooms.config.pillar and inside_pillar))

    def plan(self) -> list[tuple[FloatArray, list[int]]]:
        """Return the outlines [P, 2] of wall panels and pillar from above, with their colours."""
        panels = self._rooms.panels * self._rooms.stripes
        colours = self._layout.colours[0].astype(int).tolist()
        corners = {0: ((1, -1), (1, 1)), 1: ((-1, 1), (1, 1)), 2: ((-1, -1), (-1, 1)), 3: ((-1, -1), (1, -1))}
        shapes: list[tuple[FloatArray, list[int]]] = []
        for wall, ends in corners.items():
            points = np.linspace(np.array(ends[0]), np.array(ends[1]), panels + 1)
            shapes += [(points[i : i + 2], colours[wall * panels + i]) for i in range(panels)]
        if self._rooms.config.pillar:
            angle = np.linspace(0, 2 * math.pi, 33)
            rim = self._layout.pillar[0] + PILLAR_RADIUS * np.stack([np.cos(angle), np.sin(angle)], -1)
            shapes.append((rim, colours[-1]))
        return shapes


def _part(wall: IntArray, along: FloatArray, parts: int) -> IntArray:
    part: IntArray = wall * parts + (along * parts).astype(np.int64)
    return part
