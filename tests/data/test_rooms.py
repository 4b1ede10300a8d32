"""The embedded world: what it promises to training and to evaluation."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any, Literal

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from rad_bench.config import RoomsData
from rad_bench.data import Episodes, open_dataset
from rad_bench.data.episodes import Hidden, Palette, egomotion_from_poses
from rad_bench.data.rooms import (
    FLOOR,
    FORWARD,
    LEFT,
    MARGIN,
    NONE,
    PALETTE,
    PILLAR_RADIUS,
    RIGHT,
    SKY,
    WALL_SHADE,
    Rooms,
    _part,
)
from rad_bench.evaluation.revisits import classify

Preset = Literal["smooth", "rotation", "walking"]
every = pytest.mark.parametrize("preset", ["smooth", "rotation", "walking"])


def equal(a: Episodes, b: Episodes) -> bool:
    return all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields(Episodes))


def same(x: Any, y: Any) -> bool:
    if isinstance(x, (Palette, Hidden)):
        return all(same(getattr(x, name), getattr(y, name)) for name in vars(x))
    if isinstance(x, dict):
        return x.keys() == y.keys() and all(same(x[name], y[name]) for name in x)
    return torch.equal(x, y) if isinstance(x, torch.Tensor) else bool(x == y)


@every
def test_shapes_and_types(preset: Preset) -> None:
    data = open_dataset(RoomsData(preset=preset, size=16))
    clips = data.training_batch(seed=0, step=0, batch=3, frames=7)
    assert data.frame_shape == (3, 16, 16) and data.action_size == 4 and len(clips) == 3
    assert clips.frames.shape == (3, 7, 3, 16, 16) and clips.frames.dtype == torch.uint8
    assert clips.actions.shape == (3, 7, 4) and clips.actions.dtype == torch.float32
    assert clips.egomotion.shape == (3, 7, 3) and clips.egomotion.dtype == torch.float32
    assert clips.poses.shape == (3, 7, 3) and clips.poses.dtype == torch.float64
    assert clips.surfaces.shape == (3, 7, 0) and clips.surfaces.dtype == torch.int64
    held_out = data.held_out(episodes=2, frames=9, context=5)
    assert held_out.surfaces.shape == (2, 9, 16) and held_out.surfaces.dtype == torch.int64


@every
def test_a_training_batch_is_a_function_of_its_arguments(preset: Preset) -> None:
    config = RoomsData(preset=preset, size=8)
    one, other = Rooms(config), Rooms(config)
    other.training_batch(5, 5, 2, 5)
    first = one.training_batch(1, 2, 3, 12)
    assert equal(first, other.training_batch(1, 2, 3, 12))
    for arguments in ((2, 2, 3, 12), (1, 3, 3, 12), (2, 1, 3, 12)):
        assert not torch.equal(first.frames, one.training_batch(*arguments).frames)


@every
def test_more_held_out_episodes_change_none(preset: Preset) -> None:
    data = Rooms(RoomsData(preset=preset, size=8))
    assert equal(data.held_out(3, 20, 10), data.held_out(6, 20, 10).select(slice(0, 3)))


def test_no_held_out_room_is_ever_trained_on() -> None:
    data = Rooms(RoomsData(size=8))
    held_out = data.held_out(50, 2, 2)
    places = {tuple(pose) for pose in held_out.poses[:, 0, :2].tolist()}
    for step in range(50):
        clips = data.training_batch(seed=step % 3, step=step, batch=8, frames=2)
        assert places.isdisjoint(tuple(pose) for pose in clips.poses[:, 0, :2].tolist())


@every
def test_actions_say_how_the_agent_moved(preset: Preset) -> None:
    data = Rooms(RoomsData(preset=preset, size=8, headings=12))
    clips = data.training_batch(0, 0, 16, 30)
    assert not clips.actions[:, 0].any() and not clips.egomotion[:, 0].any()
    assert (clips.actions[:, 1:].sum(-1) == 1).all()
    turn = 2 * math.pi / 12
    motion = {LEFT: (0, 0, turn), RIGHT: (0, 0, -turn), FORWARD: (data.config.step, 0, 0), NONE: (0, 0, 0)}
    expected = torch.tensor([motion[int(a)] for a in clips.actions[:, 1:].argmax(-1).flatten()])
    torch.testing.assert_close(clips.egomotion[:, 1:].reshape(-1, 3), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(egomotion_from_poses(clips.poses).float(), clips.egomotion)
    taken = set(clips.actions[:, 1:].argmax(-1).flatten().tolist())
    assert taken == ({LEFT, RIGHT, FORWARD} if preset == "walking" else {LEFT, RIGHT})


def test_rotation_stays_on_the_spot_and_looks_around_first() -> None:
    clips = Rooms(RoomsData(preset="rotation", size=8)).training_batch(0, 0, 64, 24)
    assert (clips.poses[..., :2] == clips.poses[:, :1, :2]).all()
    assert (clips.poses[..., :2].abs() <= 0.3).all()
    heading = clips.poses[..., 2] - clips.poses[:, :1, 2]
    turned = (heading[:, 4].abs() / (math.pi / 4)).round()
    assert (turned == 4).all()  # half a turn at least
    full = ((heading[:, 8].abs() / (math.pi / 4)).round() == 8).float().mean()
    assert 0.5 < full < 0.9


def test_walking_keeps_off_walls_and_pillar() -> None:
    data = Rooms(RoomsData(preset="walking", size=8))
    layout = data._layouts(np.random.default_rng(0), 64)
    turns = np.random.default_rng(1).integers(-1, 2, (64, 200))
    actions, poses = data._move(np.random.default_rng(2), turns, layout)
    stepped = actions == FORWARD
    assert stepped.mean() > 0.2
    assert (np.abs(poses[..., :2]) <= 1 - MARGIN).all()
    to_pillar = np.linalg.norm(poses[..., :2] - layout.pillar[:, None], axis=-1)
    assert (to_pillar[stepped] >= PILLAR_RADIUS + MARGIN - 1e-9).all()


def test_a_view_is_drawn_the_same_whenever_it_returns() -> None:
    clips = Rooms(RoomsData(preset="rotation", size=16)).training_batch(0, 0, 8, 24)
    returns = 0
    for frames, poses in zip(clips.frames, clips.poses, strict=True):
        heading = (poses[:, 2] / (math.pi / 4)).round() % 8
        for h in heading.unique():
            same = frames[heading == h].int()
            returns += len(same) - 1
            assert (same - same[:1]).abs().max() <= 1  # headings a full turn apart round differently
    assert returns > 50


@pytest.mark.parametrize("panels", [1, 3])
def test_a_surface_is_all_that_shows_one_colour(panels: int) -> None:
    """Who has seen a part of it knows all of it: two identities for one colour would call a known one unknown."""
    held_out = Rooms(RoomsData(preset="rotation", size=32, panels=panels)).held_out(8, 40, 10)
    assert set(held_out.surfaces.unique().tolist()) == set(range(4 * panels + 1))  # the pillar is the last
    for frames, surfaces in zip(held_out.frames, held_out.surfaces, strict=True):
        horizon = frames[:, :, 16].permute(0, 2, 1)  # [T, size, 3]
        inside = (surfaces[:, 1:-1] == surfaces[:, :-2]) & (surfaces[:, 1:-1] == surfaces[:, 2:])
        colours = []
        for surface in surfaces.unique():
            columns = horizon[:, 1:-1][inside & (surfaces[:, 1:-1] == surface)].int()
            if len(columns):
                assert (columns - columns[:1]).abs().max() <= 1
                colours.append(columns[0])
        found = torch.stack(colours)
        apart = (found[:, None] - found[None]).abs().amax(-1) + 255 * torch.eye(len(found), dtype=torch.int32)
        assert apart.min() > 1
    without = Rooms(RoomsData(preset="rotation", size=32, panels=panels, pillar=False)).held_out(8, 20, 10)
    assert without.surfaces.max() < 4 * panels


def test_walls_look_taller_from_nearer_between_sky_and_floor() -> None:
    data = Rooms(RoomsData(size=64, panels=1, pillar=False))
    layout = data._layouts(np.random.default_rng(0), 1)
    poses = np.array([[[-0.8, 0, 0], [0, 0, 0], [0.6, 0, 0]]])
    frames = data._draw(layout, poses)[0].astype(int)
    middle = frames[:, :, :, 32]  # [T, 3, rows]
    background = (middle == np.reshape(SKY, (1, 3, 1))).all(1) | (middle == np.reshape(FLOOR, (1, 3, 1))).all(1)
    heights = (~background).sum(1)
    assert heights[0] < heights[1] < heights[2] == 64
    # At distance d a wall of height 1 spans 1 / (2 d tan(30 degrees)) of the image.
    assert heights[0] == pytest.approx(64 / (2 * 1.8 * math.tan(math.pi / 6)), abs=2)
    # From the centre, only the wall ahead is in view: its edges are straight.
    assert (np.abs(frames[1] - frames[1][:, :, :1]) <= 1).all()


def test_panels_divide_walls_into_colours() -> None:
    for panels in (1, 4):
        clips = Rooms(RoomsData(preset="rotation", size=32, panels=panels, pillar=False)).training_batch(0, 0, 4, 9)
        colours = [len(frames[:, :, 16].permute(0, 2, 1).reshape(-1, 3).unique(dim=0)) for frames in clips.frames]
        assert min(colours) >= 4 * panels // 2
        if panels == 1:
            assert max(colours) < 60  # four walls, and mixtures where two meet


@pytest.mark.parametrize(("preset", "context", "gaps"), [
    ("smooth", 32, [7, 19, 27, 40, 96]), ("rotation", 20, [7, 13, 21, 31, 100]), ("walking", 20, [7, 13, 21, 31, 100]),
])  # fmt: skip
def test_held_out_gaps_spread_over_the_horizon(preset: Preset, context: int, gaps: list[int]) -> None:
    held_out = Rooms(RoomsData(preset=preset)).held_out(32, gaps[-1], context)
    kind, gap = classify(held_out.surfaces, context, reach=6)
    counts, _ = np.histogram(gap[kind == "revisit"], gaps)
    assert counts.min() >= 50, counts
    assert (kind == "recent").sum() >= 100 and (kind == "novel").sum() >= 20


def test_training_clips_linger_if_asked_and_held_out_episodes_stay_the_same() -> None:
    plain, lingering = (Rooms(RoomsData(preset="rotation", size=8, linger=linger)) for linger in (0, 6))
    assert equal(plain.held_out(3, 60, 20), lingering.held_out(3, 60, 20))
    shares = []
    for data in (plain, lingering):
        heading = (data.training_batch(0, 0, 200, 24).poses[..., 2] / (math.pi / 4)).round().int() % 8
        just_seen = [heading[:, t, None].eq(heading[:, t - 3 : t]).any(1) for t in range(8, 24)]
        shares.append(float(torch.stack(just_seen).float().mean()))
    assert shares[0] < 0.15 < 0.2 < shares[1]


@pytest.mark.parametrize("headings", [4, 5, 12, 72])
@pytest.mark.parametrize("context", [2, 6, 40])
def test_scripts_have_the_asked_length_for_any_headings(headings: int, context: int) -> None:
    data = Rooms(RoomsData(size=8, headings=headings))
    assert data.held_out(3, context + 3, context).poses.shape == (3, context + 3, 3)
    assert data.training_batch(0, 0, 2, 90).poses.shape == (2, 90, 3)


def test_a_preset_is_a_set_of_defaults() -> None:
    assert RoomsData(preset="rotation") == RoomsData(preset="rotation", headings=8, panels=1, palette=None)
    assert RoomsData(preset="walking", step=0.2).step == 0.2 and RoomsData(preset="walking").step == 0.15
    for config in (RoomsData(), RoomsData(preset="rotation")):
        assert RoomsData.model_validate(config.model_dump()) == config


def test_neighbouring_frames_share_most_of_the_smooth_world() -> None:
    """So that the window has something to give: here a quarter of `rotation`'s frames, there three quarters."""
    shares = []
    for preset in ("smooth", "rotation"):
        surfaces = Rooms(RoomsData(preset=preset, panels=8)).held_out(16, 60, 32).surfaces
        seen_before = (surfaces[:, 1:, :, None] == surfaces[:, :-1, None]).any(-1)
        shares.append(float(seen_before.float().mean()))
    assert shares[0] > 0.75 > 0.5 > shares[1], shares


@pytest.mark.parametrize("palette", [2, 12])
def test_a_palette_gives_walls_so_many_colours(palette: int) -> None:
    layout = Rooms(RoomsData(palette=palette, panels=4))._layouts(np.random.default_rng(0), 64)
    shaded = {tuple(shade * np.array(colour)) for shade in set(WALL_SHADE) for colour in PALETTE[:palette]}
    found = {tuple(colour) for colour in layout.colours.reshape(-1, 3)}
    assert found == shaded


def test_of_a_list_of_panels_each_room_has_one_number() -> None:
    data = Rooms(RoomsData(panels=(1, 2, 8), palette=12, pillar=False))
    held_out = data.held_out(6, 60, 40)
    for episode, panels in enumerate((1, 2, 8, 1, 2, 8)):
        room = data.room(episode, 60, 40)
        colours, surfaces = room._layout.colours[0, :-1], room._layout.surfaces[0, :-1]
        assert (colours.reshape(4 * panels, -1, 3) == colours.reshape(4 * panels, -1, 3)[:, :1]).all()
        assert surfaces.tolist() == [first for first in range(0, 32, 8 // panels) for _ in range(8 // panels)]
        assert set(held_out.surfaces[episode].unique().tolist()) <= set(surfaces.tolist())
    drawn = {len(set(row)) - 1 for row in data._layouts(np.random.default_rng(0), 64).surfaces.tolist()}
    assert drawn == {4, 8, 32}


@pytest.mark.parametrize("panels", [[2], [2, 2, 4], [2, 3, 4], [0, 4], [4, 32], []])
def test_panels_that_do_not_nest_are_refused(panels: list[int]) -> None:
    with pytest.raises(ValidationError):
        RoomsData(panels=panels)  # type: ignore[arg-type]


def test_texture_darkens_stripes_of_a_panel_that_stays_one_surface() -> None:
    plain, textured = (Rooms(RoomsData(panels=2, palette=8, texture=texture)) for texture in (0.0, 0.5))
    wall, along = np.zeros((1, 1, 8), np.int64), np.arange(8)[None, None] / 8 + 0.01
    assert _part(wall, along, textured.panels).tolist() == [[[0] * 4 + [1] * 4]]
    bare, striped = (data._layouts(np.random.default_rng(0), 1).colours[0] for data in (plain, textured))
    assert len(striped) == 4 * (len(bare) - 1) + 1
    ratio = striped[textured._stripe(wall, along)[0, 0]] / bare[plain._stripe(wall, along)[0, 0]]
    assert (ratio <= 1).all() and (ratio >= 0.5).all() and len(np.unique(ratio[:, 0].round(6))) == 8
    assert textured.held_out(2, 20, 10).surfaces.max() == plain.held_out(2, 20, 10).surfaces.max() == 8


def test_validation_episodes_are_others_than_the_held_out_ones_and_training_stays_the_same() -> None:
    """As many as anybody may ask for: the streams have keys of their own."""
    held_out, validation = (Rooms(RoomsData(size=8, palette=None, split=split)) for split in ("held_out", "validation"))
    assert equal(held_out.training_batch(1, 2, 3, 9), validation.training_batch(1, 2, 3, 9))
    scored, tried = (data.held_out(64, 12, 6) for data in (held_out, validation))
    assert set(scored.names).isdisjoint(tried.names)
    colours = [{tuple(frame.flatten().tolist()) for frame in e.frames[:, 0]} for e in (scored, tried)]
    assert len(colours[0]) == len(colours[1]) == 64 and colours[0].isdisjoint(colours[1])
    assert held_out.identity != validation.identity
    for training in (True, False):
        clips = [data.probe_clips(training, 2, 9).frames for data in (held_out, validation)]
        assert torch.equal(*clips) == training


def test_identity_is_that_of_the_config() -> None:
    assert Rooms(RoomsData()).identity == Rooms(RoomsData()).identity
    others = {Rooms(config).identity for config in (RoomsData(), RoomsData(fov=61), RoomsData(preset="walking"))}
    assert len(others) == 3
