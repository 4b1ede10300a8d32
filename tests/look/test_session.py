"""A walk is the evaluation's rollout with keys for an episode's motions, and memory is what it says it is."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rad_bench.config import RunConfig
from rad_bench.data import open_dataset, rooms
from rad_bench.errors import UserError
from rad_bench.evaluation.evaluate import reach
from rad_bench.evaluation.interventions import roll_out
from rad_bench.evaluation.revisits import classify_task
from rad_bench.look import session as sessions
from rad_bench.look.places import VoxelPlace, follow, open_places, relative_to, typical_motions
from rad_bench.look.session import Session, Shown, World
from tests.runs import TINY, shaken

KEYS = {
    "rooms": {rooms.LEFT: "left", rooms.RIGHT: "right", rooms.FORWARD: "forward"},
    "voxels": {action: key for key, action in VoxelPlace.actions.items()},
}
CONTEXT, HORIZON = TINY["evaluation"]["context"], TINY["evaluation"]["horizon"]
ROUND = 8  # headings of `rotation`


def world(**sections: Any) -> World:
    sections.setdefault("evaluation", {"batch": 1})
    return World(shaken(**sections))


def own_way(of: World, episode: int) -> list[str]:
    """The keys that the episode itself pressed after its context."""
    keys = KEYS[of.trained.run.config.data.name]
    return [keys[int(action)] for action in of.task.actions[episode, CONTEXT:].argmax(-1)]


def walk(session: Session, keys: list[str]) -> list[Shown]:
    return [shown for key in keys for shown in session.press(key).frames]


def same(first: list[Shown], second: list[Shown]) -> bool:
    return len(first) == len(second) and all(torch.equal(a.frame, b.frame) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"data": {"preset": "walking"}},
        {"data": {"preset": "walking"}, "trunk": {"motion": "egomotion"}, "memory": "attention"},
        {"trunk": {"motion": "action"}, "evaluation": {"batch": 1, "tasks": ("continuation",)}},
        {"trunk": {"frames_per_step": 2, "window": 2}, "memory": "none"},
        {"data": {"name": "voxels", "size": 16}},
    ],
    ids=["pose", "walking", "egomotion", "action", "chunks", "voxels"],
)
def test_an_episodes_own_way_shows_what_was_scored_to_the_bit(sections: dict[str, Any]) -> None:
    place = world(**sections)
    trained, task = place.trained, place.task
    scored = roll_out(trained, task).frames["keep"]
    kinds, gaps = classify_task(task, reach(trained.run.config), True, None)
    for episode in (0, 3):
        shown = walk(Session(place, episode), own_way(place, episode))
        assert [s.number for s in shown] == list(range(CONTEXT, CONTEXT + HORIZON))
        for h, s in enumerate(shown):
            assert torch.equal(s.frame, scored[episode, h])
            assert s.truth is not None
            assert torch.equal(s.truth, task.truth[episode, CONTEXT + h])
            assert s.kind == kinds[episode, h]
            assert s.gap == (None if math.isnan(gaps[episode, h]) else gaps[episode, h])


@pytest.mark.parametrize("intervention", ["reset", "swap"])
def test_interventions_at_the_contexts_end_are_the_evaluations(intervention: str) -> None:
    place = world()
    trained, task = place.trained, place.task
    scored = roll_out(trained, task).frames[intervention]
    kept = walk(Session(place, 1), own_way(place, 1))
    changed = Session(place, 1)
    changed.reset() if intervention == "reset" else changed.swap(3)
    shown = walk(changed, own_way(place, 1))
    assert all(torch.equal(s.frame, scored[1, h]) for h, s in enumerate(shown))
    assert not same(shown, kept)


def test_memory_taken_or_exchanged_on_the_way_changes_what_follows_and_nothing_before() -> None:
    place, keys = world(), ["left"] * 5 + ["right"] * 6
    plain = walk(Session(place, 0), keys)
    for change in (lambda s: s.reset(), lambda s: s.swap(2)):
        session = Session(place, 0)
        before = walk(session, keys[:5])
        change(session)
        assert same(before, plain[:5])
        after = walk(session, keys[5:])
        assert not torch.equal(after[0].frame, plain[5].frame)
        assert [s.kind for s in after] == [s.kind for s in plain[5:]]  # what could be known is about the truth
        assert after[0].norm != plain[5].norm


def test_without_memory_there_is_nothing_to_take() -> None:
    place, keys = world(memory="none"), ["left"] * 6
    session = Session(place, 0)
    session.reset()
    shown = walk(session, keys)
    assert same(shown, walk(Session(place, 0), keys))
    assert not place.has_memory
    assert {s.norm for s in shown} == {None}


def test_its_own_memory_put_back_at_once_changes_nothing() -> None:
    place, keys = world(), ["right"] * 4
    session = Session(place, 2)
    session.reset()
    session.swap(2)
    assert same(walk(session, keys), walk(Session(place, 2), keys))


def test_the_same_keys_give_the_same_pictures_whatever_others_do_meanwhile() -> None:
    place, keys = world(memory="attention"), ["left", "left", "right", "left"]
    alone = walk(Session(place, 1), keys)
    session, other = Session(place, 1), Session(place, 1)
    shown = []
    for key in keys:
        shown += session.press(key).frames
        other.press("right")
        other.swap(3)
    assert same(shown, alone)


def test_the_context_is_shown_first_with_the_memorys_norm() -> None:
    place = world()
    session = Session(place, 1)
    given = session.context()
    assert [s.kind for s in given] == ["context"] * CONTEXT
    assert all(s.given and torch.equal(s.frame, place.task.truth[1, t]) for t, s in enumerate(given))
    end = sessions.memory_norm(session.cache)
    assert end is not None
    assert given[-1].norm == pytest.approx(end, rel=1e-4)
    assert len({s.norm for s in given}) > 1


def test_after_a_swap_the_other_room_is_shown_as_its_own_episode_saw_it() -> None:
    place = world(data={"preset": "rotation"})
    session = Session(place, 0)
    session.swap(2)
    shown = walk(session, ["left"] * ROUND)
    headings = place.task.poses[2, :, 2] - place.task.poses[2, 0, 2]
    compared = 0
    for s in shown:
        assert s.other is not None
        for against, decibels in ((s.other, s.psnr_other), (s.truth, s.psnr)):
            error = (s.frame.double() - against).square().mean() / 255**2  # type: ignore[operator]
            assert decibels == pytest.approx(float(-10 * error.log10()), abs=1e-3)
        turned = (headings - s.pose[2]) / (2 * math.pi)
        for t in torch.nonzero((turned - turned.round()).abs() < 1e-6)[:, 0]:
            # to a rounding: headings that are whole turns apart differ in their last bits
            assert (s.other.int() - place.task.truth[2, t].int()).abs().max() <= 1
            compared += 1
    assert compared >= ROUND
    session.swap(0)
    assert walk(session, ["left"])[0].other is None


def test_a_full_turn_leads_back_and_the_path_is_integrated_egomotion() -> None:
    place = world(data={"preset": "rotation"})
    session = Session(place, 0)
    shown = walk(session, ["left"] * ROUND)
    assert torch.equal(shown[-1].truth, place.task.truth[0, CONTEXT - 1])  # type: ignore[arg-type]
    before = session.context()[-1].pose
    assert shown[-1].pose[2] - before[2] == pytest.approx(2 * math.pi)
    first = place.task.poses[0, 0].numpy()
    np.testing.assert_allclose(follow(first, np.array(shown[-1].pose)), session.poses[-1], atol=1e-5)


def test_walls_stop_and_change_nothing() -> None:
    session = Session(world(data={"preset": "walking"}), 0)
    presses = [session.press("forward") for _ in range(20)]
    assert 0 < sum(not press.blocked for press in presses) < 20
    assert not any(press.frames for press in presses if press.blocked)
    assert np.abs(session.poses[-1][:2]).max() <= 1 - rooms.MARGIN
    assert len(session.poses) == session.cache.frames


def test_a_step_of_several_frames_waits_for_its_keys() -> None:
    session = Session(world(trunk={"frames_per_step": 2, "window": 2}), 0)
    assert session.press("left") == sessions.Press(False, ("left",), [])
    press = session.press("right")
    assert press.pending == ()
    assert [s.number for s in press.frames] == [CONTEXT, CONTEXT + 1]


def test_a_walk_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "LONGEST", 3)
    session = Session(world(), 0)
    walk(session, ["left"] * 3)
    with pytest.raises(UserError, match="start again"):
        session.press("left")


LAYOUT = np.array([[1, 1, 1, 1], [1, 0, 0, 1], [1, 1, 1, 1]], bool)
STEP, TURN = 0.2, 0.3


def maze(folder: Path, actions: list[int]) -> Any:
    """Recordings of walks along a corridor: a forward action moves ahead, a turn turns; forward ones hit walls too."""
    for number in range(4):
        frames, rng = 60, np.random.default_rng(number)
        place, heading, rows = np.array([1.5, 0.5]), 0.0, []
        for _ in range(frames):
            action = int(rng.choice(actions))
            heading += {2: TURN, 3: -TURN}.get(action, 0)
            ahead = place + STEP * np.array([math.cos(heading), math.sin(heading)])
            if action == 1 and (ahead > 0.2).all() and ahead[0] < 3.8 and ahead[1] < 0.8:
                place = ahead
            rows.append((action, *place, heading))
        action, x, y, heading_T = np.array(rows).T
        np.savez(
            folder / f"episode{number}.npz",
            image=rng.integers(0, 255, (frames, 16, 16, 3)).astype(np.uint8),
            action=np.eye(6)[action.astype(int)],
            agent_pos=np.column_stack([x, y]),
            agent_dir=np.column_stack([np.cos(heading_T), np.sin(heading_T)]),
            maze_layout=LAYOUT.astype(np.uint8),
        )  # fmt: skip
    data = {"name": "memory_maze", "path": str(folder), "held_out": 0.5}
    dataset = open_dataset(RunConfig.model_validate({"data": data}).data)
    return World(shaken(dataset, data=data, evaluation={"episodes": 2}))


def test_in_a_maze_keys_are_the_recordings_typical_motions(tmp_path: Path) -> None:
    place = maze(tmp_path, [1, 2, 2, 3, 3])
    motions = typical_motions(place.trained.dataset)  # type: ignore[arg-type]
    assert place.places.keys == ("left", "right", "forward")
    np.testing.assert_allclose(motions["left"], [0, 0, TURN], atol=1e-6)
    np.testing.assert_allclose(motions["right"], [0, 0, -TURN], atol=1e-6)
    np.testing.assert_allclose(motions["forward"], [STEP, 0, 0], atol=1e-6)
    session = Session(place, 0)
    shown = walk(session, ["left", "left", "right"])
    assert [s.truth for s in shown] == [None] * 3
    assert shown[-1].pose[2] - session.context()[-1].pose[2] == pytest.approx(TURN, abs=1e-5)
    assert {s.kind for s in shown} <= {"recent", "revisit", "partial", "novel"}
    assert session.actions[-1].tolist() == [0, 0, 0, 1, 0, 0]
    walk(session, ["forward"] * 60)
    x, y = session.poses[-1][:2]
    assert LAYOUT[int(y), int(x)]
    assert session.press("forward").blocked


def test_a_maze_without_single_steps_has_no_keys(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no single steps"):
        maze(tmp_path, [4, 5])


def test_recordings_whose_motions_are_no_keys_are_refused() -> None:
    run = RunConfig.model_validate({
        "data": {"name": "minecraft", "path": "videos"}, "trunk": {"motion": "action"},
        "evaluation": {"tasks": ["continuation"]},
    })  # fmt: skip
    with pytest.raises(UserError, match="do not map to single steps of arrow keys"):
        open_places(run, None)  # type: ignore[arg-type]


def test_a_rooms_plan_has_the_colours_that_are_seen_there() -> None:
    place = world(data={"preset": "walking", "panels": 2, "pillar": False}).places.of[1]
    shapes = place.plan()
    assert len(shapes) == 4 * 2
    for shape in shapes:
        middle = shape.points.mean(0)
        outward = np.where(
            np.abs(shape.points).min(0) == 1, middle, 0
        )  # along the axis that the panel is at the end of
        view = place.look(np.array([*(middle - 0.3 * outward), math.atan2(outward[1], outward[0])]))
        assert view is not None
        assert np.abs(view[:, 6, 8].astype(int) - shape.colour).max() <= 1


def test_a_point_is_where_it_was_after_being_seen_from_elsewhere_and_back() -> None:
    pose, points = np.array([0.3, -0.7, 2.0]), np.array([[1.0, 2.0], [-3.0, 0.5]])
    seen = relative_to(pose, points)
    np.testing.assert_allclose(follow(np.array([*pose, 64, 0.1]), np.array([1, 0, 0, 1.5, -0.3]))[3:], [65.5, -0.2])
    back = [follow(pose, np.array([*point, 0]))[:2] for point in seen]
    np.testing.assert_allclose(back, points)
    np.testing.assert_allclose(
        relative_to(np.array([1.0, 1.0, math.pi / 2]), np.array([[1.0, 3.0]])), [[2, 0]], atol=1e-9
    )
