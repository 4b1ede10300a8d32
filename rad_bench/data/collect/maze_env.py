"""Memory Maze (https://github.com/jurgisp/memory-maze), several times as fast and frame for frame the same.

A stock step takes 25 ms. Most of it checks, in Python, every ball against every contact at each of 50 physics substeps;
the rest creates a new renderer for each frame. `FastMaze` checks contacts only if the agent can touch a ball within the
step, and keeps its renderer. It also loads the wall textures once instead of ten times. Tests compare every array of
every step with `StockMaze`.

mujoco and the packages on top of it are imported when a maze is opened, because they read `MUJOCO_GL` (default osmesa).
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import time
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIZES = {"9x9": 1000, "11x11": 2000, "13x13": 3000, "15x15": 4000}  # -> steps of an episode, at 4 Hz
OBSERVED = (
    "image", "maze_layout", "agent_pos", "agent_dir", "targets_pos", "targets_vec", "target_pos", "target_vec",
    "target_color",
)  # fmt: skip
CAMERA = "walker/egocentric_camera"
# Metres from centre to centre. Beyond this distance, the agent cannot touch a ball within a step (0.25 s): the radius
# of a ball is 0.6, that of the agent is below 0.5, and the agent moves less than 1.
REACH = 2.5
Arrays = dict[str, NDArray[Any]]


class StockMaze:
    """One episode of the published environment."""

    def __init__(self, size: str, seed: int) -> None:
        tasks = _import_tasks()
        make = getattr(tasks, f"memory_maze_{size}")
        with self._building(tasks):
            self.env = make(global_observables=True, image_only_obs=False, seed=seed)

    @contextlib.contextmanager
    def _building(self, tasks: types.ModuleType) -> Iterator[None]:
        yield

    def reset(self) -> Arrays:
        """Return the first observation: arrays by the names in `OBSERVED`, and the reward, 0."""
        return self._record(self.env.reset())

    def step(self, action: int) -> Arrays:
        """Act for a quarter of a second and return the next observation."""
        return self._record(self.env.step(action))

    def close(self) -> None:
        """Free the resources of the environment."""
        self.env.close()

    def _record(self, step: Any) -> Arrays:
        arrays = {name: np.array(step.observation[name]) for name in OBSERVED}
        return arrays | {"reward": np.array(step.reward or 0.0, np.float32)}


class FastMaze(StockMaze):
    """The same episode, several times as fast."""

    def __init__(self, size: str, seed: int) -> None:
        super().__init__(size, seed)
        self._wrappers: list[Any] = []  # outermost first
        layer = self.env
        while "env" in vars(layer):
            self._wrappers.append(layer)
            layer = layer.env
        self._composer, self._task = layer, layer.task

    @contextlib.contextmanager
    def _building(self, tasks: types.ModuleType) -> Iterator[None]:
        """Load one set of textures for all ten wall characters; the stock task loads one for each."""
        real = tasks.labmaze_textures
        sets: dict[str, Any] = {}

        def shared(style: str) -> Any:
            if style not in sets:
                sets[style] = real.WallTextures(style)
            return sets[style]

        tasks.labmaze_textures = types.SimpleNamespace(WallTextures=shared)  # type: ignore[attr-defined]
        try:
            yield
        finally:
            tasks.labmaze_textures = real  # type: ignore[attr-defined]

    def reset(self) -> Arrays:
        first = super().reset()
        from dm_control.mujoco import engine

        physics = self._composer._physics
        observables = {name: o for name, o in self._task.observables.items() if o.enabled}
        camera = observables.pop(CAMERA)
        self._observables = observables
        height, width = first["image"].shape[:2]
        self._camera = engine.Camera(physics, height, width, camera._mjcf_element.full_identifier)
        self._scene_option = camera._scene_option
        self._balls = [(target, target._geom_id) for target in self._task._targets]
        self._agent = physics.model.name2id(self._task._walker.root_body.full_identifier, "body")
        return first

    def step(self, action: int) -> Arrays:
        composer, physics, random = self._composer, self._composer._physics, self._composer._random_state
        move = next(w for w in self._wrappers if hasattr(w, "action_set")).action_set[action]
        composer._hooks.before_step(composer._physics_proxy, move, random)
        self._advance(physics)
        composer._hooks.after_step(composer._physics_proxy, random)
        seen = {name: o.observation_callable(physics, random)() for name, o in self._observables.items()}
        seen[CAMERA] = self._camera.render(scene_option=self._scene_option)
        for wrapper in reversed(self._wrappers):
            if hasattr(wrapper, "observation"):
                seen = wrapper.observation(seen)
        arrays = {name: np.array(seen[name]) for name in OBSERVED}
        return arrays | {"reward": np.array(self._task.get_reward(physics), np.float32)}

    def close(self) -> None:
        if hasattr(self, "_camera"):
            self._camera._scene.free()
        super().close()

    def _advance(self, physics: Any) -> None:
        """Run the substeps of one control step. Balls that are touched in any of them are activated.

        dm_control advances by the second half of MuJoCo's step and then the first half of the next, so that positions
        are up to date between steps. So n steps are one second half, n - 1 whole steps and one first half.
        """
        import mujoco

        model, data, count = physics.model.ptr, physics.data.ptr, self._composer._n_sub_steps
        agent = data.xpos[self._agent]
        near = [pair for pair in self._balls if np.linalg.norm(data.geom_xpos[pair[1]][:2] - agent[:2]) < REACH]
        if not near:
            mujoco.mj_step2(model, data)
            mujoco.mj_step(model, data, count - 1)
            mujoco.mj_step1(model, data)
            return
        for _ in range(count):
            mujoco.mj_step2(model, data)
            mujoco.mj_step1(model, data)
            if data.ncon:
                touching = data.contact.geom
                for target, geom in near:
                    if not target._activated and (touching == geom).any():
                        target._activated = True


def measure_speed(size: str, steps: int, seed: int = 0) -> dict[str, float]:
    """Step both mazes side by side; return frames a second of each and their ratio. Raises if any array differs."""
    rng = np.random.default_rng(seed)
    mazes: dict[str, StockMaze] = {"stock": StockMaze(size, seed), "fast": FastMaze(size, seed)}
    seconds = dict.fromkeys(mazes, 0.0)
    observation = {name: maze.reset() for name, maze in mazes.items()}
    for step in range(steps + 1):
        if step:
            action = int(rng.choice(6, p=[0.05, 0.5, 0.1, 0.1, 0.125, 0.125]))
            for name, maze in mazes.items():
                began = time.perf_counter()
                observation[name] = maze.step(action)
                seconds[name] += time.perf_counter() - began
        for key, value in observation["stock"].items():
            if not np.array_equal(value, observation["fast"][key]):
                raise RuntimeError(
                    f"the fast maze differs from the stock maze in {key}; their speeds cannot be compared"
                )
    for maze in mazes.values():
        maze.close()
    rates = {f"{name}_fps": steps / seconds[name] for name in mazes}
    return rates | {"ratio": seconds["stock"] / seconds["fast"]}


def _import_tasks() -> types.ModuleType:
    """Import memory_maze with gymnasium in place of gym, and with osmesa as the default instead of egl."""
    os.environ.setdefault("MUJOCO_GL", "osmesa")
    if "gym" not in sys.modules:
        for name in ("", ".spaces", ".envs", ".envs.registration"):
            sys.modules[f"gym{name}"] = importlib.import_module(f"gymnasium{name}")
    return importlib.import_module("memory_maze.tasks")
