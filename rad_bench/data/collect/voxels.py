"""Record episodes of the embedded voxel world, for programs that read files. They are from a stream of their own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from rad_bench.config import VoxelsData
from rad_bench.data.collect.collection import Collected, Collection, fill
from rad_bench.data.collect.walked import GROUND, LAYOUT, check_size, save_walk
from rad_bench.data.voxels.dataset import Voxels

NOTE = "rad-bench's embedded Minecraft-like world of blocks, walked by rad-bench's explorer"


def collect_voxels(
    size: int, episodes: int, steps: int, out: Path, workers: int = 1, seed: int = 0,
    report: Callable[[int, int], None] = lambda done, of: None,
) -> Collected:  # fmt: skip
    """Bring a folder to `episodes` episodes of `steps` steps (and one more frame) of size x size pixels.

    Existing episodes are kept. `report(done, of)` is called after each episode. Raises `UserError`.
    """
    check_size(size)
    config = VoxelsData(name="voxels", size=size)
    collection = Collection(
        world="voxels",
        seed=seed,
        settings={"world": "voxels", "size": size, "steps": steps, "identity": Voxels(config).identity},
        versions={},
        collect_one=partial(_collect_one, config, seed, steps),
        about={"note": NOTE},
        layout=LAYOUT + GROUND,
    )
    return fill(out, collection, episodes, workers, report)


def _collect_one(config: VoxelsData, seed: int, steps: int, number: int, path: Path) -> None:
    episode, ground = Voxels(config).recording(seed, number, steps + 1)
    assert episode.poses is not None
    frames = episode.frames[0].permute(0, 2, 3, 1).contiguous()
    save_walk(path, frames.numpy(), episode.actions[0].argmax(-1).numpy(), episode.poses[0].numpy(), ground)
